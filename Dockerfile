# Two images from one file:
#   docker build --target cpu -t model-gateway:0.1.0 .          (also the default target)
#   docker build --target gpu -t model-gateway:0.1.0-gpu .
# Neither holds a database: name one with GATEWAY_REDIS_URL.

FROM python:3.11-slim AS python


# The virtual environment is made without pip; the base image's own pip installs into it from outside.
FROM python AS venv
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/venv


# The gateway alone, without what it depends on: the one layer that a change of code replaces.
FROM venv AS app
WORKDIR /src
COPY requirements/build.txt requirements/
RUN pip install --no-cache-dir --require-hashes --only-binary :all: -r requirements/build.txt
COPY pyproject.toml README.md LICENSE ./
COPY gateway gateway
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /dist . \
    && pip --python /opt/venv/bin/python install --no-deps --no-index /dist/*.whl


# Wheels only: a package without one for this platform should stop the build, not ask for a compiler.
FROM venv AS deps-cpu
COPY requirements/cpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: -r requirements/cpu.txt


FROM venv AS deps-gpu
COPY requirements/gpu.txt requirements/
RUN --mount=type=cache,target=/root/.cache/pip \
    pip --python /opt/venv/bin/python install --require-hashes --only-binary :all: -r requirements/gpu.txt


# What both images say about how they run.
FROM python AS runtime
# ONNX Runtime's Linux wheels report to their maker from 1.29 on; the variable has to be set before the import.
# The public port is meant to be reached; the ops port stays on loopback until GATEWAY_OPS_HOST and a token open it.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ORT_DISABLE_TELEMETRY=1 \
    GATEWAY_HOST=0.0.0.0 \
    GATEWAY_MODELS=/models \
    GATEWAY_DATA_DIR=/data
# Numeric, so that Kubernetes can see that it is not root.
RUN install -d -o 10001 -g 10001 /data
USER 10001:10001
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# No HEALTHCHECK: the same image runs `gateway collect`, which has no port. Whoever starts it knows which of them it is.
ENTRYPOINT ["gateway"]
CMD ["serve"]


# No CUDA base image: onnxruntime-gpu[cuda,cudnn] brings CUDA as wheels, and the container toolkit mounts the driver.
# The provider library looks for them along the loader's path alone.
FROM runtime AS gpu
ENV NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib:/opt/venv/lib/python3.11/site-packages/nvidia/cudnn/lib
COPY --from=deps-gpu /opt/venv /opt/venv
COPY --from=app /opt/venv /opt/venv
COPY models /models


FROM runtime AS cpu
COPY --from=deps-cpu /opt/venv /opt/venv
COPY --from=app /opt/venv /opt/venv
COPY models /models
