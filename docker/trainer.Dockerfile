# The training program: no Ray, no video decoding. Build from the repository root:
#   docker build -f docker/trainer.Dockerfile -t storyline-trainer .
#   docker run --gpus all -v /data:/data storyline-trainer fit --config /data/trainer.yaml --out /data/runs/first
ARG BASE=python:3.11-slim-bookworm
FROM ${BASE} AS install
WORKDIR /opt/storyline
COPY . .
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --constraint constraints.txt '.[trainer]'

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends tini && rm -rf /var/lib/apt/lists/*
COPY --from=install /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["tini", "--", "trainer"]
CMD ["--help"]
