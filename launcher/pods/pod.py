"""vpred-launch pod: a pod's first process. It keeps an sshd, and in the first pod it launches the run.

The pods of a job are its hosts. Ranks start in them over ssh. When Kubernetes stops pods, it sends SIGTERM to this
process alone and waits for its end. So it lets ranks save a checkpoint first.

A pod ends with 0 only when the run is complete. Kubernetes makes a pod again that ended with 75.
"""

import argparse
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.cluster.hosts import Host
from launcher.cluster.kubernetes import KEYS
from launcher.cluster.submit import SubmitConfig
from launcher.contract.config import ConfigError, dump_yaml
from launcher.contract.environment import environment, forget
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.identity import sets_identity
from launcher.contract.run_dir import RunDir
from launcher.pods.hosts import asked_hosts, is_complete, placed, pod_names, silent, table_hosts
from launcher.processes.ssh import Ssh
from launcher.processes.tied import kill_session, start_tied, workers_of
from launcher.supervision.stop_requests import StopRequest, stop_requests

logger = logging.getLogger(__name__)

_SSHD = "/usr/sbin/sshd"
_SSHD_CONFIG = Path(__file__).with_name("sshd_config")
_KNOWN_HOSTS = Path(KEYS) / "known_hosts"  # its keys belong to one job alone
_POLL_S = 0.2
_LOOK_S = 2.0
# After stop_grace_s ranks get TERM, then KILL 5 s later. The rest is for the records that they leave.
_AFTER_GRACE_S = 20.0
_MPI_DAEMONS = ("prted", "orted")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `pod` to the commands of vpred-launch."""
    text = "the first process of a pod on Kubernetes; `submit` writes it into the manifest"
    parser = commands.add_parser("pod", help=text, description=text, allow_abbrev=False)
    parser.add_argument("--index", type=int, required=True, metavar="N", help="0 launches the run, others are hosts")
    parser.add_argument("--cluster", type=Path, required=True, metavar="FILE", help="with a section submit")
    parser.add_argument("--recipe", type=Path, required=True, metavar="FILE")
    parser.add_argument("--run-dir", type=Path, required=True, metavar="DIR", help="on the volume that all pods share")
    parser.set_defaults(command=_command)


def _command(options: argparse.Namespace, overrides: Sequence[str], trainer: object) -> int:
    if overrides:
        raise ConfigError(f"found {overrides[0]!r} (a pod takes both documents as they are)")
    # An operator may have given this pod the identity of a rank, for ranks that it would start itself.
    forget(filter(sets_identity, environment()))
    with stop_requests() as stop:
        cluster = load_cluster(options.cluster)
        submit = cluster.submit
        if submit is None or submit.scheduler != "kubernetes":
            raise ConfigError(f"{options.cluster}: submit.scheduler: must be kubernetes for a pod")
        run = RunDir(options.run_dir.absolute())
        with _sshd() as sshd:
            if options.index:
                return _serve(run, cluster, stop, sshd)
            return _launch(options, run, cluster, submit, stop, sshd)


@contextmanager
def _sshd() -> Iterator["subprocess.Popen[bytes]"]:
    if not shutil.which(_SSHD):
        raise ConfigError(f"{_SSHD}: found none", "install openssh-server into the image")
    sshd = start_tied([_SSHD, "-D", "-e", "-f", str(_SSHD_CONFIG)], environment(), Path("/"), 2, 2)
    try:
        yield sshd
    finally:
        kill_session(sshd)


def _serve(run: RunDir, cluster: ClusterConfig, stop: StopRequest, sshd: "subprocess.Popen[bytes]") -> int:
    """Be a host until the run is complete or this pod is stopped."""
    looked_s = -_LOOK_S
    while not stop.count:
        if _has_died(sshd):
            return ExitCode.FAILED
        if time.monotonic() - looked_s >= _LOOK_S:
            looked_s = time.monotonic()
            if _is_over(run):
                return ExitCode.OK
        time.sleep(_POLL_S)
    # All ranks stop together when one is asked to. Where only this pod is stopped, nobody else asks them.
    for pid in _shims(run):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
    grace_s = cluster.launcher.stop_grace_s + _AFTER_GRACE_S
    if not _await(lambda: not (workers_of(run.root) or _mpi_daemons()), grace_s):
        logger.warning("ranks of this pod still run %.0f s after the request to stop", grace_s)
    return ExitCode.OK if _is_over(run) else ExitCode.PREEMPTED


def _has_died(sshd: "subprocess.Popen[bytes]") -> bool:
    if sshd.poll() is None:
        return False
    logger.error("%s ended (exit code %d); its words are above", _SSHD, sshd.returncode)
    return True


def _launch(
    options: argparse.Namespace,
    run: RunDir,
    cluster: ClusterConfig,
    submit: SubmitConfig,
    stop: StopRequest,
    sshd: "subprocess.Popen[bytes]",
) -> int:
    """Wait for the other pods, then run `vpred-launch run` on all of them."""
    hosts = _hosts(f"vpred-{run.root.name}", cluster, submit, lambda: bool(stop.count) or sshd.poll() is not None)
    if stop.count:
        return ExitCode.PREEMPTED
    if _has_died(sshd) or not hosts:
        return ExitCode.FAILED
    addresses = [host.address for host in hosts[: submit.nodes]]
    with tempfile.TemporaryDirectory(prefix="vpred-pod-") as folder:
        file = Path(folder) / "cluster.yaml"
        file.write_text(dump_yaml(placed(cluster, hosts, submit.nodes)))
        # The same program with another command.
        argv = [*sys.orig_argv[: sys.orig_argv.index("pod")], "run", "--cluster", str(file)]
        argv += ["--recipe", str(options.recipe), "--run-dir", str(run.root)]
        code = _run(argv, run.submit.job_log(f"vpred-{run.root.name}"), stop)
    if code == ExitCode.OK:
        write_atomic(run.submit.over, _KNOWN_HOSTS.read_text())
        return code
    if stop.count and code != ExitCode.DIVERGED:
        return ExitCode.PREEMPTED
    if code == ExitCode.BAD_CONFIG and (lost := silent(addresses)):
        logger.error("not wrong input, but lost pods: %s", ", ".join(lost))
        return ExitCode.FAILED
    return code if code > 0 else 128 - code


def _hosts(name: str, cluster: ClusterConfig, submit: SubmitConfig, given_up: Callable[[], bool]) -> list[Host]:
    """Return the pods that ranks start in, as soon as all but the spare ones answer.

    Empty: they do not answer in time, or `given_up` said so meanwhile.
    """
    settings, timeout_s = submit.kubernetes, cluster.network.join_timeout_s
    table = None if settings.rank_table is None else Path(settings.rank_table)
    if table is not None:
        if not _await(lambda: is_complete(table) or given_up(), timeout_s):
            logger.error("%s: not completed within %g s; look at its controller", table, timeout_s)
        if given_up() or not is_complete(table):
            return []
        hosts = table_hosts(table)
        return hosts if _all_answer([host.address for host in hosts[: submit.nodes]], timeout_s, given_up) else []
    addresses = pod_names(settings, name, submit.nodes + submit.spare_nodes)
    if not _all_answer(addresses[: submit.nodes], timeout_s, given_up):
        return []
    if cluster.accelerator == "ascend":  # spare pods that do not answer cannot be asked for their NPUs
        addresses = [each for each in addresses if each not in silent(addresses[submit.nodes :])]
    return asked_hosts(cluster, addresses, Ssh())


def _all_answer(addresses: Sequence[str], timeout_s: float, given_up: Callable[[], bool]) -> bool:
    waiting = list(addresses)
    logger.info("waiting for %d pods", len(waiting))

    def all_answer() -> bool:
        waiting[:] = silent(waiting)
        return not waiting or given_up()

    if not _await(all_answer, timeout_s):
        logger.error("no sshd answers within %g s (network.join_timeout_s): %s", timeout_s, ", ".join(waiting))
    return not waiting


def _run(argv: Sequence[str], log: Path, stop: StopRequest) -> int:
    """Run the launcher to its end, pass the first request to stop on to it, and return its exit code.

    log: gets its output, which outlives the pod; it is shown here too
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, log.open("rb") as shown:
        shown.seek(0, os.SEEK_END)
        launcher = start_tied(argv, environment(), Path.cwd(), output, output)
        is_asked = False
        while launcher.poll() is None:
            if stop.count and not is_asked:
                is_asked = True
                launcher.terminate()
            _show(shown)
            time.sleep(_POLL_S)
        _show(shown)
    return launcher.returncode


def _show(log: BinaryIO) -> None:
    sys.stdout.write(log.read().decode(errors="replace"))
    sys.stdout.flush()


def _await(condition: Callable[[], bool], timeout_s: float) -> bool:
    """Return whether `condition` holds within `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not (holds := condition()) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    return holds


def _is_over(run: RunDir) -> bool:
    """Return whether the launcher of this job has ended a complete run."""
    try:
        return run.submit.over.read_text() == _KNOWN_HOSTS.read_text()
    except (FileNotFoundError, NotADirectoryError):
        return False


def _shims(run: RunDir) -> list[int]:
    found = []
    for pid in workers_of(run.root):
        with suppress(OSError):  # it ended meanwhile
            if b"launcher.rank.shim" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(pid)
    return found


def _mpi_daemons() -> list[int]:
    """Return Open MPI's daemons. If one ends before mpirun's end, mpirun takes its host for lost."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (entry / "comm").read_text().strip() in _MPI_DAEMONS and entry.stat().st_uid == os.geteuid():
                found.append(int(entry.name))
    return found
