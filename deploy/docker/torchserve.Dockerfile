# TorchServe over the volume of published models, as a second runtime: archived upstream, so for those
# who already run it.
#   docker build --file deploy/docker/torchserve.Dockerfile --tag digits-torchserve .
# For a torch without CUDA: --build-arg TORCH_INDEX_URL=..., as PyTorch's Get Started page shows.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# An image of wheels for pip to find beside those of its index; scratch has none.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=
WORKDIR /source
COPY deploy/torchserve/requirements.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels --no-deps \
        --constraint requirements.txt ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} torch \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --requirement requirements.txt

FROM ${PYTHON_IMAGE} AS torchserve
# The newest Java 17 that Debian has; its package wants a directory that slim images lack.
# hadolint ignore=DL3008
RUN mkdir --parents /usr/share/man/man1 \
    && apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
# The same user as in the other images, which share the volume.
RUN groupadd --gid 10001 digits \
    && useradd --uid 10001 --gid digits --no-create-home --home-dir /nonexistent digits \
    && install --directory --owner=digits --group=digits /models
COPY --from=build /opt/digits /opt/digits
COPY model_repository.py /opt/digits/source/
COPY deploy/__init__.py /opt/digits/source/deploy/
COPY deploy/torchserve /opt/digits/source/deploy/torchserve
ENV PATH=/opt/digits/bin:$PATH \
    PYTHONPATH=/opt/digits/source \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TS_GRPC_INFERENCE_ADDRESS=0.0.0.0 \
    TS_METRICS_ADDRESS=http://0.0.0.0:8082
WORKDIR /tmp
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="digits-torchserve" \
      org.opencontainers.image.description="TorchServe serving what digits-training publishes" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# V2 over gRPC, and metrics. Management listens inside only.
EXPOSE 7070 8082
HEALTHCHECK --interval=10s --timeout=10s --start-period=180s --retries=3 \
    CMD ["python", "-m", "deploy.torchserve.ready", "--model-store", "/tmp/model-store"]
# Packs what is in the volume, and becomes the Java process, which hears SIGTERM.
ENTRYPOINT ["python", "-m", "deploy.torchserve", "--model-repository", "/models", \
            "--model-store", "/tmp/model-store"]
