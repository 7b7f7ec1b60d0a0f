# The preprocessing program. Build from the repository root:
#   docker build -f docker/pipeline.Dockerfile -t storyline-pipeline .
#   docker run --shm-size=2g -v /data:/data storyline-pipeline run --config /data/pipeline.yaml
# For GPU machines give a CUDA base: --build-arg BASE=nvidia/cuda:13.0.0-runtime-ubuntu24.04 (has Python 3.12).
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS install
WORKDIR /opt/storyline
RUN if ! command -v python3 >/dev/null; then apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; fi
COPY . .
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[pipeline]'

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/* \
 && if ! command -v python3 >/dev/null; then apt-get update && apt-get install -y --no-install-recommends python3 && rm -rf /var/lib/apt/lists/*; fi
COPY --from=install /opt/venv /opt/venv
# Ray refuses unauthenticated clusters only if told so; our images tell it.
ENV PATH=/opt/venv/bin:$PATH RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["tini", "--", "pipeline"]
CMD ["--help"]
