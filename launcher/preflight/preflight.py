"""Finds what would make this launch fail, here or on any host. Each finding has its remedy."""

import ctypes
import importlib.util
import os
import shutil
import ssl
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from launcher.cluster.config import ClusterConfig
from launcher.contract.accelerators import HOST_ENGINE_COST
from launcher.contract.run_dir import RunDir
from launcher.planning.job import Job
from launcher.planning.mpirun import Mpirun, MpirunError, find_mpirun
from launcher.planning.plan import shared_targets
from launcher.planning.trainer import Trainer
from launcher.preflight.host_checks import metrics_port_finding
from launcher.preflight.host_probe import why_closed
from launcher.preflight.hosts import check_hosts, nearest
from launcher.preflight.mpi_trial import MpiTrial, mpi_trial
from launcher.preflight.recipe import check_recipe
from launcher.preflight.slurm import srun_findings
from launcher.processes.ssh import Remote, is_here
from launcher.records.finding import Finding
from launcher.records.run_lock import is_locked
from launcher.records.targets import run_dir_of

_GIB = 1 << 30
_OF_MPIRUN = (
    ("launcher", "mpirun"),
    ("launcher", "oversubscribe"),
    ("network", "interface"),
    ("preflight", "mpi_timeout_s"),
)


def preflight(job: Job, env: Mapping[str, str], remote: Remote) -> list[Finding]:
    """Return all findings for a launch of `job` from this machine. It leaves no file behind."""
    cluster = job.cluster
    in_place = _run_dir(job.run, cluster.preflight.min_free_disk_bytes)
    findings = [
        _root(cluster),
        _packages(job.trainer),
        *_libraries(job.trainer),
        *in_place,
        *_ports(cluster),
        *_targets(cluster, job.run),
        *_metrics_files(cluster),
        *_forwarded(cluster, env),
        *_cores(cluster),
        *_engine(cluster),
        *_msrun(cluster, Path(sys.executable).parent),
        *_without_effect(cluster),
    ]
    mpirun = None
    if cluster.launcher.kind == "srun":
        findings += srun_findings(cluster, env)
    if cluster.needs_mpirun:
        try:
            mpirun = find_mpirun(cluster.launcher.mpirun, env)
        except MpirunError as error:
            findings.append(_mpirun_refused(error))
    if not _failed(in_place):
        path = mpirun.path if mpirun else None
        recipe = job.train_yaml if job.data else ""
        findings += check_hosts(cluster, job.run, job.trainer.packages, recipe, path, env, remote)
    # Slow checks run only when the fast ones passed.
    if not _failed(findings):
        findings += [job.mpi] if job.mpi else _trials(job, env, remote, mpirun)
    return findings


@contextmanager
def trial_on_one_host(cluster: ClusterConfig, env: Mapping[str, str]) -> Iterator[MpiTrial | None]:
    """Begin the trial of MPI before anything else. None: it has to wait, or mpirun is missing."""
    with ExitStack() as stack:
        trial = None
        if cluster.needs_mpirun and is_here(cluster.hosts[0].address) and len(cluster.known_hosts) == 1:
            with suppress(MpirunError):  # the preflight will report it
                trial = stack.enter_context(mpi_trial(find_mpirun(cluster.launcher.mpirun, env), cluster, env))
        yield trial


def _trials(job: Job, env: Mapping[str, str], remote: Remote, mpirun: Mpirun | None) -> list[Finding]:
    """Try MPI on all hosts. Meanwhile run the trainer's check on the hosts where it has not run yet."""
    if mpirun is None and job.cluster.launcher.kind != "srun":
        return check_recipe(job, env, remote) if job.data else []
    try:
        with mpi_trial(mpirun, job.cluster, env) as trial:
            found = check_recipe(job, env, remote) if job.data else []
            return found if _failed(found) else [*found, trial.finding()]
    except MpirunError as error:
        return [_mpirun_refused(error)]


def _mpirun_refused(error: MpirunError) -> Finding:
    return Finding("error", "mpirun", error.found, error.remedy)


def _failed(findings: Sequence[Finding]) -> bool:
    return any(finding.severity == "error" for finding in findings)


def _root(cluster: ClusterConfig) -> Finding:
    if os.geteuid() != 0 or cluster.launcher.allow_run_as_root or cluster.launcher.kind == "srun":
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
    """Check the run directory or, while it does not exist, the nearest parent that does."""
    place = nearest(run.root)
    remedy = "give another --run-dir"
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"x")
    except OSError as error:
        return [Finding("error", "run directory", f"{run.root} cannot be written ({error.strerror})", remedy)]
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < min_free_bytes:
        found = f"{free_bytes / _GIB:.2f} GiB free for {run.root}, {min_free_bytes / _GIB:.2f} GiB needed"
        remedy = "free some space, give another --run-dir, or lower preflight.min_free_disk_bytes"
        return [Finding("error", "disk", found, remedy)]
    if is_locked(run.lock):
        found = f"{run.root} is in use by another launcher (pid {run.lock.read_text(errors='replace').strip()})"
        return [Finding("error", "run directory", found, "wait for it or stop it, or give another --run-dir")]
    return [Finding("ok", "run directory", f"{run.root} can be written, {free_bytes / _GIB:.1f} GiB free")]


def _ports(cluster: ClusterConfig) -> list[Finding]:
    host = next((host for host in cluster.hosts if is_here(host.address)), None)
    if host is None or cluster.metrics is None:
        return []
    address, ports = cluster.metrics.address, cluster.metrics_ports[: cluster.ranks_on(host)]
    closed = [
        metrics_port_finding(f"{address}:{port} cannot be opened ({reason})", reason)
        for port in ports
        if (reason := why_closed(address, port))
    ]
    wrong = [each for each in closed if each.severity == "error"][:1]  # an address that is none fails at every port
    return wrong or closed or [Finding("ok", "metrics ports", f"{address}:{ports[0]}-{ports[-1]} free")]


def _metrics_files(cluster: ClusterConfig) -> list[Finding]:
    """Check that this host can read what metrics are served with."""
    if cluster.metrics is None or not any(is_here(host.address) for host in cluster.hosts):
        return []
    tls, users = cluster.metrics.tls, cluster.metrics.users_file
    found = []
    if tls is not None:
        remedy = "give PEM files that belong together in cluster.metrics.tls"
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(tls.certificate, tls.key, password="")  # never ask for one on the terminal
            if tls.client_ca is not None:
                context.load_verify_locations(tls.client_ca)
        except OSError as error:  # ssl.SSLError is one
            names = ", ".join(str(each) for each in (tls.certificate, tls.key, tls.client_ca) if each)
            found.append(Finding("error", "metrics TLS", f"{names}: cannot be used ({error})", remedy))
    if users is not None and not os.access(users, os.R_OK):
        remedy = "make it with python -m monitoring.users NAME, or set cluster.metrics.users_file=null"
        found.append(Finding("error", "metrics users", f"{users}: cannot be read", remedy))
    return found


def _targets(cluster: ClusterConfig, run: RunDir) -> list[Finding]:
    """Check the file that lists the ranks for Prometheus. That of another run is not overwritten."""
    path = shared_targets(cluster, run.root)
    if path is None:
        return []
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        found = f"metrics.targets_folder: {path.parent} is no folder that can be written"
        return [Finding("error", "metrics targets", found, "make it, or set cluster.metrics.targets_folder=null")]
    try:
        owner = run_dir_of(path.read_text(errors="replace"))
    except FileNotFoundError:
        return [Finding("ok", "metrics targets", f"{path} is free")]
    if owner == str(run.root):
        return [Finding("ok", "metrics targets", f"{path} is of this run")]
    found = f"{path} lists the ranks of {owner or 'something else'}"
    remedy = "remove it if that run is over, or give this one a name: cluster.metrics.run_name=NAME"
    return [Finding("error", "metrics targets", found, remedy)]


def _forwarded(cluster: ClusterConfig, env: Mapping[str, str]) -> list[Finding]:
    return [
        Finding(
            "error",
            "environment",
            f"{name} is not set, but launcher.forward_variables names it",
            "source the set_env.sh of the toolkit first, or remove the name from the list",
        )
        for name in cluster.launcher.forward_variables
        if name not in env
    ]


def _without_effect(cluster: ClusterConfig) -> list[Finding]:
    """Name the keys that only mpirun reads, where the launch starts none."""
    changed = cluster.model_dump(exclude_defaults=True)
    given = [f"{section}.{key}" for section, key in _OF_MPIRUN if key in changed.get(section, {})]
    if cluster.needs_mpirun or not given:
        return []
    found = f"no effect: {', '.join(given)} (launcher.kind {cluster.launcher.kind} on one host starts no mpirun)"
    return [Finding("warning", "cluster file", found, "remove them, or set launcher.kind: mpirun")]


def _cores(cluster: ClusterConfig) -> list[Finding]:
    host = next((host for host in cluster.hosts if is_here(host.address)), None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cluster.accelerator != "cpu" or host is None or cluster.ranks_on(host) <= cores:
        return []
    found = f"{cluster.ranks_on(host)} workers on {cores} core(s)"
    return [Finding("warning", "cores", found, "workers_per_host up to the number of cores is faster")]


def _msrun(cluster: ClusterConfig, binaries: Path) -> list[Finding]:
    """Check that msrun lies beside python, from where every host starts it."""
    if cluster.launcher.kind != "msrun" or os.access(binaries / "msrun", os.X_OK):
        return []
    remedy = "install mindspore into this environment (pip install '.[train]'), or take launcher.kind=mpirun"
    return [Finding("error", "msrun", f"{binaries / 'msrun'} cannot be run", remedy)]


def _engine(cluster: ClusterConfig) -> list[Finding]:
    if cluster.accelerator == "cpu" or cluster.chosen_engine == "device":
        return []
    return [Finding("warning", "engine", f"host on ascend: {HOST_ENGINE_COST}", "take engine: auto, but to debug")]
