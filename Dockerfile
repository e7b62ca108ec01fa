# The trainer and launcher with all dependencies, for CPU. On Ascend, build from an image that has CANN, apt and
# Python 3.11 (CANN comes with the base, never from here; not tried, there was no NPU):
#   docker build --build-arg BASE_IMAGE=<your CANN image> -t vpred .
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}

# openssh-client: mpirun starts ranks on other hosts through it. libgomp1: MindSpore's wheel links it and brings none.
# A user by number, so that a cluster can check it is not root; not 1000, which a base may have given away.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 openssh-client \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 vpred

# The compiled operations for CPU are left out: they are built for one processor, and the image runs on any.
WORKDIR /opt/vpred
COPY requirements.lock ./
RUN pip install --no-cache-dir --require-hashes -r requirements.lock
COPY . .
RUN pip install --no-cache-dir --no-deps -e .

USER 10001
WORKDIR /home/vpred
ENTRYPOINT ["vpred-launch"]
CMD ["run"]
