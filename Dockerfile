# The trainer and launcher with all dependencies, for CPU. docs/operations/container.md explains the arguments.
#   docker build -t vpred .
#   docker build --build-arg BASE_IMAGE=<your CANN image> --build-arg ACCELERATOR=ascend -t vpred-ascend .
# The base needs apt and Python 3.11 or 3.12 with venv. Pin it by its digest: BASE_IMAGE=NAME@sha256:...
ARG BASE_IMAGE=python:3.11-slim-bookworm

FROM ${BASE_IMAGE} AS build
ARG ACCELERATOR=cpu
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
# The virtual environment is used because Debian's and Ubuntu's Python refuse `pip install` outside one (PEP 668).
ENV PATH=/opt/venv/bin:$PATH
WORKDIR /opt/vpred
COPY requirements.lock ./
# MindSpore's wheel holds kernels for every device: 1.3 GB for CUDA, and 0.5 GB for Ascend that a CPU never loads.
# The packages' own tests take 0.1 GB.
RUN pip install --no-cache-dir --require-hashes -r requirements.lock \
    && mindspore="$(python -c 'import importlib.util as u; print(u.find_spec("mindspore").submodule_search_locations[0])')" \
    && rm -rf "$mindspore"/lib/plugin/*gpu* "$mindspore"/include \
    && for package in numpy pandas scipy; do \
        find "$mindspore/../$package" -type d -name tests -prune -exec rm -rf {} +; \
    done \
    && case "$ACCELERATOR" in \
        cpu) rm -rf "$mindspore"/lib/plugin/*ascend* ;; \
        ascend) ;; \
        *) echo "ACCELERATOR: found '$ACCELERATOR' (known: cpu, ascend)" >&2; exit 2 ;; \
    esac
COPY . .
# Compiled operations run on any x86-64-v3. Other processors, and other architectures, use MindSpore's own.
RUN pip install --no-cache-dir --no-deps -e . \
    && python -m compileall -q checkpoints_mgr data launcher monitoring vpred_train \
    && if [ "$ACCELERATOR" = cpu ] && [ "$(uname -m)" = x86_64 ]; then \
        pip install --no-cache-dir --no-deps --require-hashes -r vpred_train/kernels/requirements.lock \
        && python -m vpred_train.kernels.library --portable \
        && pip uninstall --yes onednn-devel-cpu-gomp; \
    fi

FROM ${BASE_IMAGE}
ARG BASE_IMAGE
ARG VERSION=unknown
ARG REVISION=unknown
LABEL org.opencontainers.image.title="vpred" \
      org.opencontainers.image.description="Finetunes Stable Diffusion 2.x with the v-prediction objective" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.base.name="${BASE_IMAGE}"
# libgomp1: MindSpore links it. openssh: ranks of other pods are started through it, by `vpred-launch pod`. tini: reaps
# what outlives a killed rank. The user has a number, so that a cluster can see that it is not root, and group 0, which
# any other number gets too.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 openssh-client openssh-server tini \
    && rm -rf /var/lib/apt/lists/* /etc/ssh/ssh_host_* \
    && useradd --create-home --uid 10001 --gid 0 --shell /bin/bash vpred \
    && chmod g=u /home/vpred \
    && ln -s /opt/vpred/launcher/pods/ssh_config /etc/ssh/ssh_config.d/vpred.conf
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/vpred /opt/vpred
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/vpred \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:0
WORKDIR /home/vpred
ENTRYPOINT ["tini", "--", "vpred-launch"]
CMD ["run"]
