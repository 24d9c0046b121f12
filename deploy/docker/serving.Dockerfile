# The inference server, without torch:
#   docker build --file deploy/docker/serving.Dockerfile --tag digits-serving .
# with CUDA and cuDNN: --build-arg RUNTIME=gpu
# and what sends it images and their true labels: --target client --tag digits-client

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# An image of wheels for pip to find beside those of its index; scratch has none.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${PYTHON_IMAGE} AS source
WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE *.py ./
COPY serving serving
# setuptools is told of it; the code of training is not served.
RUN mkdir training && touch training/__init__.py

FROM source AS build
# cpu or gpu: onnxruntime, or onnxruntime-gpu with CUDA and cuDNN.
ARG RUNTIME=cpu
# A second extra, such as tracing.
ARG EXTRAS=tracing
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[serving,${EXTRAS},${RUNTIME}]"

FROM source AS build-client
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[client]"

FROM ${PYTHON_IMAGE} AS run
# One fixed, unprivileged user in all images, so that they share volumes.
RUN groupadd --gid 10001 digits \
    && useradd --uid 10001 --gid digits --no-create-home --home-dir /nonexistent digits \
    && install --directory --owner=digits --group=digits /models
ENV PATH=/opt/digits/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM run AS client
LABEL org.opencontainers.image.title="digits-client" \
      org.opencontainers.image.description="Sends images to a digits server, and their true labels"
COPY --from=build-client /opt/digits /opt/digits
COPY deploy/load.py deploy/load_command.py /opt/digits/load/deploy/
ENV PYTHONPATH=/opt/digits/load
ENTRYPOINT ["python", "-m"]
CMD ["deploy.load", "--help"]

FROM run AS serving
LABEL org.opencontainers.image.title="digits-serving" \
      org.opencontainers.image.description="gRPC inference server for ONNX models"
COPY --from=build /opt/digits /opt/digits
ENV DIGITS_HOST=0.0.0.0 \
    DIGITS_MODEL_REPOSITORY=/models
EXPOSE 8001 8002
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "serving", "healthcheck"]
# The server itself is process 1: it hears SIGTERM, and drains.
ENTRYPOINT ["python", "-m", "serving"]
