# The server in a container. CPU:  docker build -t affectgpt .
#                            GPU:  docker build -t affectgpt:gpu --build-arg BASE=nvidia/cuda:13.0.1-runtime-ubuntu24.04
#                                    --build-arg EXTRAS=web,asr,vllm --build-arg CONSTRAINTS=constraints/vllm.txt
#                                    --build-arg TORCH_INDEX= --build-arg COMPILER="gcc libc6-dev python3-dev" .
# Weights are not part of it: mount models/ and output/.
ARG BASE=ubuntu:24.04
FROM ${BASE}

ARG EXTRAS=page,asr
ARG CONSTRAINTS=constraints/ci.txt
# where the CPU build of torch is; empty: PyPI, whose build is for CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# of a GPU's image: Triton compiles its launchers against Python.h when it starts
ARG COMPILER=

# The base image says which versions there are.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3 python3-venv libglib2.0-0 ca-certificates ${COMPILER} \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 affectgpt

WORKDIR /app
COPY pyproject.toml README.md LICENSE ./
COPY constraints constraints
COPY affectgpt affectgpt
COPY train_configs train_configs

RUN python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -c "$CONSTRAINTS" ".[$EXTRAS]"

# TOKENIZERS_PARALLELISM is not a secret.
# hadolint ignore=DL3064
ENV PATH=/venv/bin:$PATH \
    HF_HUB_OFFLINE=1 \
    OMP_WAIT_POLICY=PASSIVE \
    TOKENIZERS_PARALLELISM=false \
    PYTHONUNBUFFERED=1

USER 10001
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
# exec form: SIGTERM reaches the server, which finishes what runs
ENTRYPOINT ["affectgpt", "serve"]
CMD ["--help"]
