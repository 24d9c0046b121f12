# The training job, which publishes into the volume at /models:
#   docker build --file deploy/docker/training.Dockerfile --tag digits-training .
# By default pip's index decides which torch that is: on Linux one with CUDA, of gigabytes. For the
# CPU only: --build-arg TORCH_INDEX_URL=..., the address that PyTorch's Get Started page shows.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# An image of wheels for pip to find beside those of its index; scratch has none.
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

# All but our own code, which changes more often: it becomes a layer of its own.
FROM ${PYTHON_IMAGE} AS dependencies
ARG TORCH_INDEX_URL=
WORKDIR /source
COPY constraints.txt ./
# torch first and alone: it is large, and its index may have nothing else.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ${TORCH_INDEX_URL:+--index-url "${TORCH_INDEX_URL}"} torch
COPY pyproject.toml ./
# onnxruntime is what every export is proved with.
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    touch README.md \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[training,cpu]" \
    && pip --python /opt/digits/bin/python uninstall --yes digits

# /code/opt/digits is what is laid over the dependencies; serving is not there to be installed,
# and so neither is the client's command.
FROM dependencies AS code
COPY LICENSE README.md *.py ./
COPY training training
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    pip --python /opt/digits/bin/python install --find-links /wheels --no-deps --root /code . \
    && rm /code/opt/digits/bin/digits

FROM ${PYTHON_IMAGE} AS run
# One fixed, unprivileged user in all images, so that they share volumes. The standard library comes
# without bytecode: compiled here, a health check takes a third of the CPU, and starting half.
RUN groupadd --gid 10001 digits \
    && useradd --uid 10001 --gid digits --no-log-init --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin digits \
    && install --directory --owner=digits --group=digits /models /cache \
    && python3 -m compileall -q \
        -x '/(site-packages|test|distutils|ensurepip|idlelib|lib2to3|pydoc_data|tkinter|turtledemo)/' \
        "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"
# Any user may run it, over a root that cannot be written: what must be written goes to /tmp.
# ONNX Runtime reports its use to Microsoft where it is not told not to.
ENV PATH=/opt/digits/bin:$PATH \
    HOME=/tmp \
    ORT_DISABLE_TELEMETRY=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1

FROM run AS training
COPY --from=dependencies /opt/digits /opt/digits
COPY --from=code /code/opt/digits /opt/digits
# `python -m deploy.train`: all models of the demonstrations, as docker compose trains them.
COPY deploy/__init__.py deploy/train*.py /opt/digits/demonstration/deploy/
# MNIST is kept in /cache/digits.
ENV MPLCONFIGDIR=/tmp/matplotlib \
    PYTHONPATH=/opt/digits/demonstration \
    XDG_CACHE_HOME=/cache
USER 10001:10001
# Process 1 is given no signal that it does not handle, and Python handles SIGINT by itself.
STOPSIGNAL SIGINT
ENTRYPOINT ["python", "-m", "training", "--model-repository", "/models"]
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="digits-training" \
      org.opencontainers.image.description="Trains, exports, verifies and publishes digit classifiers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
