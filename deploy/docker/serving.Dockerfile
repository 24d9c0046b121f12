# The inference server, without torch:
#   docker build --file deploy/docker/serving.Dockerfile --tag digits-serving .
# with CUDA and cuDNN: --build-arg RUNTIME=gpu
# without the native lane, and grpcio answers all: --build-arg LANE=0
# and what sends it images and their true labels: --target client --tag digits-client

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# An image of wheels for pip to find beside those of its index; scratch has none.
ARG WHEELS_IMAGE=scratch
# 1 or 0.
ARG LANE=1

FROM ${WHEELS_IMAGE} AS wheels

# All but our own code, which changes more often: it becomes a layer of its own.
FROM ${PYTHON_IMAGE} AS dependencies
# cpu or gpu: onnxruntime, or onnxruntime-gpu with CUDA and cuDNN.
ARG RUNTIME=cpu
WORKDIR /source
COPY constraints.txt pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    touch README.md \
    && python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[serving,tracing,${RUNTIME}]" \
    && pip --python /opt/digits/bin/python uninstall --yes digits

FROM ${PYTHON_IMAGE} AS client-dependencies
WORKDIR /source
COPY constraints.txt pyproject.toml ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    touch README.md \
    && python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt ".[client]" \
    && pip --python /opt/digits/bin/python uninstall --yes digits

# /code/opt/digits is what is laid over the dependencies; training is not there to be installed.
FROM client-dependencies AS code
COPY LICENSE README.md *.py ./
COPY serving serving
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    pip --python /opt/digits/bin/python install --find-links /wheels --no-deps --root /code .

FROM scratch AS lane-0
WORKDIR /lane/opt/digits

# What compiles stays here. Python's own images bring its headers along, Debian's packages do not.
# Packages have the versions of the image's release of Debian: there are no others to pin them to.
FROM ${PYTHON_IMAGE} AS lane-1
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends cmake g++ libnghttp2-dev libssl-dev make \
    && headers=$(python3 -c 'import sysconfig; print(sysconfig.get_path("include"))') \
    && { [ -e "${headers}/Python.h" ] || apt-get install --yes --no-install-recommends python3-dev; } \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    --mount=type=bind,from=wheels,target=/wheels \
    --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=ca,target=/etc/pip-ca.crt,required=false \
    python3 -m venv --without-pip /opt/digits \
    && pip --python /opt/digits/bin/python install --find-links /wheels \
        --constraint constraints.txt pybind11
COPY serving/lane serving/lane
RUN /opt/digits/bin/python -m serving.lane.build --build-dir /tmp/lane \
    && packages=$(/opt/digits/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
    && install -D --mode=644 --target-directory="/lane${packages}/serving/lane" serving/lane/*.so

# hadolint ignore=DL3006
FROM lane-${LANE} AS lane

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

FROM run AS client
COPY --from=client-dependencies /opt/digits /opt/digits
COPY --from=code /code/opt/digits /opt/digits
COPY deploy/__init__.py deploy/load*.py /opt/digits/load/deploy/
ENV PYTHONPATH=/opt/digits/load
USER 10001:10001
ENTRYPOINT ["python", "-m"]
CMD ["deploy.load", "--help"]
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="digits-client" \
      org.opencontainers.image.description="Sends images to a digits server, and their true labels" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM run AS serving
ARG LANE
# What the lane is linked with, beside what each image of Python has; of the system, which updates it.
# hadolint ignore=DL3008
RUN [ "${LANE}" = 0 ] || { apt-get update \
    && apt-get install --yes --no-install-recommends libnghttp2-14 \
    && apt-get clean \
    && rm -rf /var/lib/apt/lists/*; }
COPY --from=dependencies /opt/digits /opt/digits
COPY --from=code /code/opt/digits /opt/digits
COPY --from=lane /lane/opt/digits /opt/digits
ENV DIGITS_HOST=0.0.0.0 \
    DIGITS_MODEL_REPOSITORY=/models
EXPOSE 8000 8001 8002
USER 10001:10001
# It asks where the same environment has the server listen.
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 \
    CMD ["python", "-m", "serving", "healthcheck"]
# The server itself is process 1: it hears SIGTERM, and drains.
ENTRYPOINT ["python", "-m", "serving"]
ARG PYTHON_IMAGE
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="digits-serving" \
      org.opencontainers.image.description="Inference server for ONNX models, over gRPC and HTTP" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="${PYTHON_IMAGE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
