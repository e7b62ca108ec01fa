"""Looking before leaping: what would make this launch fail, here or on any host, each finding with its remedy."""

import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher.cluster import ClusterConfig
from launcher.contract.config import ConfigError
from launcher.contract.run_dir import RunDir
from launcher.finding import Finding
from launcher.mpirun import ROOT_VARIABLES, Mpirun, find_mpirun
from launcher.preflight_hosts import check_hosts
from launcher.probe import why_closed
from launcher.processes import kill_session, start_tied
from launcher.recipe import Trainer
from launcher.remote import Remote, is_here

_PROBE_TIMEOUT_S = 60.0
_PROBE = (
    "from mpi4py import MPI; import os; "
    "os.write(1, f'<size={MPI.COMM_WORLD.size} library={MPI.Get_library_version()[:80]!r}>'.encode())"
)
_PROBE_RANKS = 2
_GIB = 1 << 30


def preflight(
    cluster: ClusterConfig, run: RunDir, trainer: Trainer, env: Mapping[str, str], train_yaml: str, remote: Remote
) -> list[Finding]:
    """All findings for a launch of `cluster` into `run` from this machine. Writes nothing that stays."""
    in_place = _run_dir(run, cluster.preflight.min_free_disk_bytes)
    findings = [
        _root(cluster),
        _packages(trainer),
        *_libraries(trainer),
        *in_place,
        *_ports(cluster),
        *_forwarded(cluster, env),
        *_cores(cluster),
    ]
    mpirun = None
    if cluster.needs_mpirun:
        try:
            mpirun = find_mpirun(cluster.launcher.mpirun, env)
        except ConfigError as error:
            found, _, remedy = str(error).removeprefix("mpirun: ").partition("; ")
            findings.append(Finding("error", "mpirun", found, remedy))
    if not _failed(in_place):
        path = mpirun.path if mpirun else None
        findings += check_hosts(cluster, run, trainer.packages, train_yaml, path, env, remote)
    # Starting ranks takes about a second: not worth it when something else must be put right first.
    if mpirun is not None and not _failed(findings):
        findings.append(_mpi(mpirun, cluster, env))
    return findings


def _failed(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _root(cluster: ClusterConfig) -> Finding:
    if os.geteuid() != 0 or cluster.launcher.allow_run_as_root:
        return Finding("ok", "user", f"uid {os.geteuid()}")
    return Finding(
        "error",
        "user",
        "root, which mpirun refuses",
        "set launcher.allow_run_as_root: true or use another user",
    )


def _packages(trainer: Trainer) -> Finding:
    missing = [name for name in trainer.packages if importlib.util.find_spec(name) is None]
    if not missing:
        return Finding("ok", "packages", f"{', '.join(trainer.packages)} found for {sys.executable}")
    return Finding(
        "error",
        "packages",
        f"{', '.join(missing)} not installed for {sys.executable}",
        "pip install '.[train]' into this environment",
    )


def _libraries(trainer: Trainer) -> list[Finding]:
    findings = []
    for library, package in trainer.libraries.items():
        try:
            ctypes.CDLL(library)
        except OSError as error:
            remedy = f"install it, on Debian and Ubuntu: apt-get install {package}"
            findings.append(Finding("error", "system library", str(error), remedy))
    return findings


def _run_dir(run: RunDir, min_free_bytes: int) -> list[Finding]:
    """Looks at the run directory or, while it does not exist, at the nearest parent that does."""
    place = next(path for path in (run.root, *run.root.parents) if path.exists())
    remedy = "give another --run-dir"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        return [Finding("error", "run directory", f"{run.root} cannot be written ({error.strerror})", remedy)]
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < min_free_bytes:
        found = f"{free_bytes / _GIB:.2f} GiB free for {run.root}, {min_free_bytes / _GIB:.2f} GiB demanded"
        remedy = "free some space, give another --run-dir, or lower preflight.min_free_disk_bytes"
        return [Finding("error", "disk", found, remedy)]
    if is_locked(run.lock):
        found = f"{run.root} is in use by another launcher (pid {run.lock.read_text().strip()})"
        return [Finding("error", "run directory", found, "wait for it or stop it, or give another --run-dir")]
    return [Finding("ok", "run directory", f"{run.root} can be written, {free_bytes / _GIB:.1f} GiB free")]


def is_locked(lock: Path) -> bool:
    """Whether a launcher holds this lock file now."""
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _ports(cluster: ClusterConfig) -> list[Finding]:
    host = next((host for host in cluster.hosts if is_here(host.address)), None)
    if host is None:
        return []
    address, base = cluster.metrics.address, cluster.metrics.base_port
    ports = range(base, base + cluster.ranks_on(host))
    remedy = "stop what listens there or choose other ports: cluster.metrics.base_port=PORT"
    errors = [
        Finding("error", "metrics port", f"{address}:{port} cannot be opened ({reason})", remedy)
        for port in ports
        if (reason := why_closed(address, port))
    ]
    return errors or [Finding("ok", "metrics ports", f"{address}:{ports[0]}-{ports[-1]} free")]


def _forwarded(cluster: ClusterConfig, env: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            "error",
            "environment",
            f"{name} is not set, but launcher.forward_variables names it",
            "source the set_env.sh of the toolkit first, or take the name off the list",
        )
        for name in cluster.launcher.forward_variables
        if name not in env
    ]


def _cores(cluster: ClusterConfig) -> list[Finding]:
    host = next((host for host in cluster.hosts if is_here(host.address)), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cluster.accelerator != "cpu" or host is None or cluster.ranks_on(host) <= cores:
        return []
    found = f"{cluster.ranks_on(host)} workers on {cores} core(s)"
    return [Finding("warning", "cores", found, "workers_per_host up to the number of cores is faster")]


def _mpi(mpirun: Mpirun, cluster: ClusterConfig, env: Mapping[str, str]) -> Finding:
    """Does this mpirun start ranks that see each other? A library of another MPI makes each a world of 1."""
    argv = [str(mpirun.path), "-np", str(_PROBE_RANKS)]
    if mpirun.name == "Open MPI":
        argv += ["--host", f"localhost:{_PROBE_RANKS}", *mpirun.dialect.oversubscribe, "--bind-to", "none"]
        argv += ["--mca", "pml", "ob1", "--mca", "btl", f"self,{mpirun.dialect.shared_memory}"]
    argv += [sys.executable, "-P", "-c", _PROBE]
    root = ROOT_VARIABLES if cluster.launcher.allow_run_as_root else {}
    name = str(mpirun)
    remedy = "name the mpirun of the MPI that mpi4py uses: launcher.mpirun"
    process = start_tied(argv, {**env, **cluster.environment, **root}, subprocess.PIPE, subprocess.STDOUT)
    try:
        output = process.communicate(timeout=_PROBE_TIMEOUT_S)[0].decode(errors="replace")
    except subprocess.TimeoutExpired:
        return Finding("error", "MPI", f"{name} did not start 2 ranks in {_PROBE_TIMEOUT_S:.0f} s", remedy)
    finally:
        kill_session(process)
    answers = re.findall(r"<size=(\d+) library=(.*?)>", output)
    libraries = sorted({library.strip("'\"").split(",")[0] for _, library in answers})
    if process.returncode != 0 or not answers:
        said = [line for line in output.splitlines() if line.strip(" -")]
        return Finding("error", "MPI", f"{name} failed: {said[-1] if said else 'it said nothing'}", remedy)
    sizes = {int(size) for size, _ in answers}
    if sizes != {_PROBE_RANKS}:
        found = f"{name} started 2 ranks, but mpi4py ({', '.join(libraries)}) sees a world of {min(sizes)}"
        return Finding("error", "MPI", found, remedy)
    return Finding("ok", "MPI", f"{name} and mpi4py ({', '.join(libraries)}) agree")
