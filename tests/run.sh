#!/usr/bin/env bash
# All checks: format, lint, types, tests. Sets up what it needs in .venv. Arguments go to pytest. `quick` leaves out the
# tests that need MindSpore, MPI, other hosts or whole jobs. `long` runs the tests that take minutes: Slurm, pods, images,
# alerts from end to end. Without an argument all other tests run.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
./run_distributed.sh schema >/dev/null

python="$PWD/.venv/bin/python"
stamp="$PWD/.venv/.tests-set-up-for"
wanted="$(cat requirements-dev.lock docs/requirements.lock | sha256sum)"
if [[ "$(cat -- "$stamp" 2>/dev/null)" != "$wanted" ]]; then
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
    "$python" -m pip install --quiet --disable-pip-version-check --require-hashes -r docs/requirements.lock
    printf '%s\n' "$wanted" >"$stamp"
fi

# Hosts in namespaces (tests/support/hosts.py), Slurm, the system's Open MPI, and images: where this is Debian's root, add
# them.
if [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
    wanted_packages=()
    for pair in sshd:openssh-server ip:iproute2 mpirun.openmpi:openmpi-bin slurmctld:slurm-wlm munged:munge \
        mmdebstrap:mmdebstrap buildah:buildah podman:podman runc:runc prometheus:prometheus amtool:prometheus-alertmanager \
        prometheus-node-exporter:prometheus-node-exporter chromium:chromium npm:npm; do
        PATH="$PATH:/usr/sbin" command -v "${pair%%:*}" >/dev/null || wanted_packages+=("${pair#*:}")
    done
    # Slurm's PMIx plugin opens a file of this package.
    compgen -G "/usr/lib/*/pmix2/lib/libpmix.so" >/dev/null || wanted_packages+=(libpmix-dev)
    if ((${#wanted_packages[@]})); then
        # Some of them are services. The tests start their own.
        policy=/usr/sbin/policy-rc.d
        if [[ -e $policy ]]; then policy=""; else printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod +x "$policy"; fi
        { apt-get update && apt-get install --yes --no-install-recommends "${wanted_packages[@]}"; } >/dev/null 2>&1 \
            || echo "tests/run.sh: could not install ${wanted_packages[*]}; the tests that need them will skip" >&2
        [[ -z $policy ]] || rm "$policy"
    fi
fi

# Two files at a time: a job waits for imports, one core's compiler and its peers about as long as it computes.
by_files=(--durations=25 --numprocesses=2 --dist=loadfile --no-loadscope-reorder)
if [[ "${1:-}" == long ]]; then exec "$python" -m pytest "${by_files[@]}" -m long "${@:2}"; fi

"$python" -m ruff format --check .
"$python" -m ruff check .
"$python" -m mypy
if [[ "${1:-}" == quick ]]; then
    exec "$python" -m pytest --numprocesses=2 -m "not slow and not mindspore and not mpi and not hosts" "${@:2}"
fi
if (($#)); then exec "$python" -m pytest "$@"; fi
exec "$python" -m pytest "${by_files[@]}" -m "not long"
