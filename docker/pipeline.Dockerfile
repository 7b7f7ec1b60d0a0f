# The preprocessing program. Build from the repository root:
#   docker build -f docker/pipeline.Dockerfile -t storyline-pipeline .
#   docker run --shm-size=2g -v "$PWD":/data storyline-pipeline run
# (reads /data/pipeline.yaml; add `--user "$(id -u)"` if uid 1000 may not write to that folder).
# Ray keeps its small object store (100 MiB) in /dev/shm, and sockets and logs in /tmp: with
# --read-only add --tmpfs /tmp --tmpfs /home/storyline --tmpfs /scratch.
# Official weights are files that you mount: -v /your/weights:/weights:ro (docs/weights.md).
# The extra `torchcodec` is not in it: it wants the system's FFmpeg; PyAV brings its own.
# PyPI's torch brings its CUDA libraries: `--gpus all` needs only the driver. A CPU image is gigabytes
# smaller with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS install
ARG TORCH_INDEX=
WORKDIR /opt/storyline
COPY . .
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} \
        --constraint constraints.txt '.[pipeline,flow,s3,gs]'

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/venv /opt/venv
# Ray in token mode refuses who has no token, and keeps its own token in the home folder, so that
# must be writable whatever --user says. USER: that uid has no name of its own to look up.
ENV PATH=/opt/venv/bin:$PATH USER=storyline HOME=/home/storyline RAY_AUTH_MODE=token PYTHONUNBUFFERED=1
# Copies of remote shards (docs/store.md); the layers of a container are a bad place for gigabytes:
# -v /fast/disk:/scratch
ENV STORYLINE_SCRATCH=/scratch STORYLINE_WEIGHTS=/weights
RUN install -d -m 1777 $HOME /data /scratch
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["tini", "--", "pipeline"]
CMD ["--help"]
