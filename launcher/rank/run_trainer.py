"""Runs a rank's trainer: sets its environment, keeps its log, passes signals on, dumps stacks and records its end."""

import argparse
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

from launcher.contract.environment import environment
from launcher.contract.exit_codes import NOT_STARTED
from launcher.contract.identity import Identity, is_scheduler, read_identity, without_identity
from launcher.contract.process import STACKS_SIGNAL, default_signals, die_with_parent
from launcher.contract.run_dir import AttemptDir, Outcome, RankStatus, RunDir, StackDump
from launcher.rank.environment import Meeting, rank_environment, scheduler_environment
from launcher.rank.lease import end_without_lease
from launcher.rank.oom import KernelLog, evidence, oom_kills

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_NO_STOP = {signal.SIGUSR2, STACKS_SIGNAL}
_LOOK_S = 1.0
_DUMP_S = 0.5  # faulthandler needs milliseconds


def run_trainer(options: argparse.Namespace, starter_pid: int) -> int:
    """Run the trainer to its end and return its exit code, 128 + signal when a signal ended it.

    options: the shim's options
    starter_pid: pid of the MPI daemon, or of whatever else started the shim
    """
    env = without_identity(environment(), but=options.by)
    attempt = RunDir(options.run_dir).attempt(options.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    if is_scheduler(env):
        return _schedule(options.trainer, env, attempt.scheduler_log)
    forwarder = _Forwarder()
    identity = read_identity(env)
    trainer_env = _trainer_environment(options, env, identity, attempt)
    killed_before, kernel_log = oom_kills(), KernelLog()
    trainer = _start_trainer(options.trainer, trainer_env, attempt.log(identity.rank))
    if trainer is None:
        end = _End(0, NOT_STARTED)
    else:
        forwarder.attach(trainer)
        # slurmstepd ends by itself, and belongs to root.
        daemon_pid = None if options.by == "slurm" else starter_pid
        end = _follow(trainer, identity.rank, attempt, options.lease_s, daemon_pid)
    out_of_memory = None
    if end.returncode == -signal.SIGKILL:
        # The log is the better evidence, since it names the process.
        out_of_memory = kernel_log.killed_for_memory(end.pid) or evidence(killed_before)
    status = RankStatus.read(attempt.status(identity.rank))
    Outcome(
        rank=identity.rank,
        hostname=identity.hostname,
        pid=end.pid,
        returncode=end.returncode,
        last_step=status.step if status else 0,
        ended_unix_s=time.time(),
        told_to_stop=forwarder.told_to_stop,
        lease_is_over=end.lease_is_over,
        waiting=status is not None and status.waiting,
        out_of_memory=out_of_memory,
    ).write(attempt.outcome(identity.rank))
    if end.lease_is_over and options.by != "slurm":
        os.kill(starter_pid, signal.SIGKILL)
    return end.returncode if end.returncode >= 0 else 128 - end.returncode


@dataclass(frozen=True)
class _End:
    """Says how the trainer ended.

    pid: 0 when it could not be started
    lease_is_over: the lease ran out, see lease.end_without_lease
    """

    pid: int
    returncode: int
    lease_is_over: bool = False


def _follow(
    trainer: "subprocess.Popen[bytes]", rank: int, attempt: AttemptDir, lease_s: float, daemon_pid: int | None
) -> _End:
    """Wait for the trainer's end. Meanwhile dump its stacks on request, and end it when the lease runs out."""
    look = partial(_dump_on_request, attempt, rank, trainer)
    threading.Thread(target=look, daemon=True, name="stacks").start()
    ran_out = end_without_lease(attempt.lease, lease_s, trainer, attempt.log(rank), daemon_pid)
    returncode = trainer.wait()
    return _End(trainer.pid, returncode, ran_out.is_set())


class _Forwarder:
    """Passes signals on to the trainer, and keeps those that come before it exists."""

    def __init__(self) -> None:
        self.told_to_stop = False
        self._trainer: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []
        for number in _FORWARDED:
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        self.told_to_stop |= number not in _NO_STOP
        if self._trainer is None:
            self._kept.append(number)
        else:
            self._trainer.send_signal(number)

    def attach(self, trainer: subprocess.Popen[bytes]) -> None:
        self._trainer = trainer
        for number in self._kept:
            trainer.send_signal(number)


def _schedule(argv: Sequence[str], env: dict[str, str], log: Path) -> int:
    """Run the scheduler beside msrun's ranks. It ends after them, so it ignores the signals that stop them."""
    for number in _FORWARDED:
        signal.signal(number, signal.SIG_IGN)
    scheduler = _start_trainer(argv, env, log)
    return NOT_STARTED if scheduler is None else scheduler.wait()


def _trainer_environment(
    options: argparse.Namespace, env: dict[str, str], identity: Identity, attempt: AttemptDir
) -> dict[str, str]:
    """Return the trainer's environment. Beside rank 0 of a dynamic cluster without msrun, also start the scheduler."""
    meeting = Meeting(
        init=options.init,
        rank_table=options.rank_table,
        host=options.scheduler_host,
        port=options.scheduler_port,
        timeout_s=options.join_timeout_s,
        device_ids=options.device_ids,
    )
    trainer_env = rank_environment(env, meeting, identity)
    if trainer_env.get("MS_ROLE") == "MS_WORKER" and identity.launcher != "msrun" and identity.rank == 0:
        # It ends by itself after the last rank, or with this process.
        _start_trainer(options.trainer, scheduler_environment(env, meeting, identity), attempt.scheduler_log)
    return trainer_env


def _start_trainer(argv: Sequence[str], env: dict[str, str], log: Path) -> "subprocess.Popen[bytes] | None":
    """Start the trainer with its output in `log`. When it cannot be started, write a line there and return None."""
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                # The trainer's connection to MPICH's daemon.
                pass_fds=(int(env["PMI_FD"]),) if "PMI_FD" in env else (),
                # This process has one thread, so code between fork and exec is safe.
                preexec_fn=partial(_prepare, os.getpid()),
            )
        except OSError as error:
            output.write(f"cannot start {argv[0]}: {error.strerror}\n".encode())
            return None


def _prepare(shim_pid: int) -> None:
    default_signals()
    # Signals that request something other than a stop must not end a trainer that has no handler for them yet.
    for number in _NO_STOP:
        signal.signal(number, signal.SIG_IGN)
    die_with_parent(shim_pid)


def _dump_on_request(attempt: AttemptDir, rank: int, trainer: subprocess.Popen[bytes]) -> None:
    """Poll for the file `dump_stacks` (a file works across hosts without a connection) and answer it once."""
    while not attempt.dump_stacks.exists():
        time.sleep(_LOOK_S)
    state = _state(trainer.pid)
    trainer.send_signal(STACKS_SIGNAL)
    time.sleep(_DUMP_S)
    StackDump(rank=rank, state=state).write(attempt.stacks(rank))


def _state(pid: int) -> str:
    """Return the process's state letter, proc(5), or "?" when it cannot be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "?"
