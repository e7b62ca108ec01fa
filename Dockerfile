# The trainer and launcher with all dependencies, for CPU. On Ascend, build from an image with CANN and Python 3.11:
#   docker build --build-arg BASE_IMAGE=<your CANN image> -t vpred .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

# openssh-client: mpirun starts ranks on other hosts through it.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home vpred

WORKDIR /opt/vpred
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps -e .

USER vpred
WORKDIR /home/vpred
ENTRYPOINT ["vpred-launch"]
CMD ["run"]
