# Two images, each for a head and for nodes that join it:
#     docker build --target cpu -t seer-sgl:cpu .
#     docker build --target cuda -t seer-sgl:cuda .
# System packages: Mooncake links libcurl, libibverbs and libnuma; SGLang's HiCache compiles its page
# hash on first use, with g++ and the headers of OpenSSL and Python.

FROM python:3.12-slim-bookworm AS cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ libcurl4 libibverbs1 libnuma1 libssl-dev \
    && rm -rf /var/lib/apt/lists/*
# What is large comes first, so that a change of our own code leaves this layer as it is.
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt sglang mooncake-transfer-engine-non-cuda
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir -c /src/constraints.txt '/src[cpu]'
RUN useradd --create-home --uid 10001 seer \
    && install -d -o seer -g seer /home/seer/.local /home/seer/.local/share \
       /home/seer/.local/share/seer-sgl
USER 10001
WORKDIR /home/seer
ENTRYPOINT ["seer-sgl"]
CMD ["serve", "--host", "0.0.0.0"]

# CUDA 13.0, as the torch that SGLang pins; the devel image has nvcc, with which FlashInfer compiles.
FROM nvidia/cuda:13.0.2-devel-ubuntu24.04 AS cuda
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
       g++ libcurl4t64 libibverbs1 libnuma1 libssl-dev python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/seer-sgl
ENV PATH=/opt/seer-sgl/bin:$PATH
RUN --mount=type=bind,source=constraints.txt,target=/constraints.txt \
    pip install --no-cache-dir -c /constraints.txt sglang mooncake-transfer-engine-cuda13
RUN --mount=type=bind,target=/src,rw \
    pip install --no-cache-dir -c /src/constraints.txt '/src[cuda]'
RUN useradd --create-home --uid 10001 seer \
    && install -d -o seer -g seer /home/seer/.local /home/seer/.local/share \
       /home/seer/.local/share/seer-sgl
USER 10001
WORKDIR /home/seer
ENTRYPOINT ["seer-sgl"]
CMD ["serve", "--host", "0.0.0.0"]
