# The training job, which publishes into the volume at /models:
#   docker build --file deploy/docker/training.Dockerfile --tag digits-training .
# By default pip's index decides which torch that is: on Linux one with CUDA, of gigabytes. For the
# CPU only: --build-arg TORCH_INDEX_URL=..., the address that PyTorch's Get Started page shows.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# An image of wheels for pip to find beside those of its index; scratch has none.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

FROM ${PYTHON_IMAGE} AS build
ARG TORCH_INDEX_URL=
WORKDIR /source
COPY constraints.txt ./
# torch first and alone: it is large, and seldom changes.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} torch
COPY pyproject.toml README.md LICENSE *.py ./
COPY training training
RUN mkdir -p serving/pb && touch serving/__init__.py serving/pb/__init__.py
# onnxruntime is what every export is proved with.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[training,cpu]"

FROM ${PYTHON_IMAGE} AS training
# The same user as the server's, which reads what this publishes.
RUN groupadd --gid 10001 digits \
    && useradd --uid 10001 --gid digits --no-create-home --home-dir /nonexistent digits \
    && install --directory --owner=digits --group=digits /models /cache
COPY --from=build /opt/digits /opt/digits
# `python -m deploy.train`, all models of the demonstrations, as docker compose trains them.
COPY deploy/train.py /opt/digits/demonstration/deploy/
ENV PATH=/opt/digits/bin:$PATH \
    PYTHONPATH=/opt/digits/demonstration \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    XDG_CACHE_HOME=/cache \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="digits-training" \
      org.opencontainers.image.description="Trains, exports, verifies and publishes digit classifiers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["python", "-m", "training", "--model-repository", "/models"]
