# The training program: no Ray, no video decoding. Build from the repository root:
#   docker build -f docker/trainer.Dockerfile -t storyline-trainer .
#   docker run --gpus all -v "$PWD":/data storyline-trainer fit --config trainer.yaml --out runs/first
# (reads /data/trainer.yaml; add `--user "$(id -u)"` if uid 1000 may not write to that folder).
# PyPI's torch brings its CUDA libraries: `--gpus all` needs only the driver. A CPU image is gigabytes
# smaller with --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu.
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS install
ARG TORCH_INDEX=
WORKDIR /opt/storyline
COPY . .
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url ${TORCH_INDEX}} \
        --constraint constraints.txt '.[trainer,s3,gs]'

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/venv /opt/venv
# torch keeps caches in the home folder and asks for the name of the user, who has none.
ENV PATH=/opt/venv/bin:$PATH USER=storyline HOME=/home/storyline PYTHONUNBUFFERED=1
# Copies of remote shards (docs/store.md); the layers of a container are a bad place for gigabytes:
# -v /fast/disk:/scratch
ENV STORYLINE_SCRATCH=/scratch
RUN install -d -m 1777 $HOME /data /scratch
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["tini", "--", "trainer"]
CMD ["--help"]
