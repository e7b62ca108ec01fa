"""One per rank, between mpirun and the trainer: log file, signals, and a true account of its end.

`python -P -m launcher.shim --run-dir D --attempt N --init WAY ... -- TRAINER ...`
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from launcher.contract.environment import environment
from launcher.contract.process import die_with_parent, living_parent

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_NOT_STARTED = 127


class _Forwarder:
    """Passes signals on to the trainer; those that come before it exists are kept for it."""

    def __init__(self) -> None:
        self._trainer: subprocess.Popen[bytes] | None = None
        self._kept: list[int] = []
        for number in _FORWARDED:
            signal.signal(number, self._forward)

    def _forward(self, number: int, frame: FrameType | None) -> None:
        if self._trainer is None:
            self._kept.append(number)
        else:
            self._trainer.send_signal(number)

    def attach(self, trainer: subprocess.Popen[bytes]) -> None:
        self._trainer = trainer
        for number in self._kept:
            trainer.send_signal(number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the trainer to its end and return its exit code, 128 + signal when a signal ended it."""
    # msrun gives every rank a session of its own, mpirun and launcher.node do not.
    starter = living_parent("msrun" if "MS_ROLE" in environment() else None)
    if starter is None:
        print("launcher.shim: what started it is gone; not starting a trainer nobody watches", file=sys.stderr)
        return _NOT_STARTED
    die_with_parent(starter)
    # Imported only now: pydantic takes a moment, and mpirun may die in it.
    from launcher.contract.identity import is_scheduler, read_identity
    from launcher.contract.run_dir import Outcome, RankStatus, RunDir
    from launcher.rank_environment import Meeting, rank_environment, scheduler_environment

    options = _parser().parse_args(argv)
    forwarder = _Forwarder()
    env = environment()
    attempt = RunDir(options.run_dir).attempt(options.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    if is_scheduler(env):
        return _run_trainer(options.trainer, env, attempt.scheduler_log, forwarder)[1]
    identity = read_identity(env)
    meeting = Meeting(
        init=options.init,
        rank_table=options.rank_table,
        host=options.scheduler_host,
        port=options.scheduler_port,
        timeout_s=options.join_timeout_s,
        device_ids=tuple(options.device_ids),
    )
    trainer_env = rank_environment(env, meeting, identity)
    if trainer_env.get("MS_ROLE") == "MS_WORKER" and identity.launcher != "msrun" and identity.rank == 0:
        # It ends by itself after the last rank, or with this process.
        _start_trainer(options.trainer, scheduler_environment(env, meeting, identity), attempt.scheduler_log)
    pid, returncode = _run_trainer(options.trainer, trainer_env, attempt.log(identity.rank), forwarder)
    status = RankStatus.read(attempt.status(identity.rank))
    Outcome(
        rank=identity.rank,
        hostname=identity.hostname,
        pid=pid,
        returncode=returncode,
        last_step=status.step if status else 0,
        ended_unix_s=time.time(),
    ).write(attempt.outcome(identity.rank))
    return returncode if returncode >= 0 else 128 - returncode


def _run_trainer(argv: Sequence[str], env: dict[str, str], log: Path, forwarder: _Forwarder) -> tuple[int, int]:
    """The trainer's pid and return code; (0, 127) when it cannot be started."""
    trainer = _start_trainer(argv, env, log)
    if trainer is None:
        return 0, _NOT_STARTED
    forwarder.attach(trainer)
    return trainer.pid, trainer.wait()


def _start_trainer(argv: Sequence[str], env: dict[str, str], log: Path) -> "subprocess.Popen[bytes] | None":
    """The trainer, its output going to `log`; None, and a line there, when it cannot be started."""
    with log.open("ab") as output:
        try:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                # This process has one thread, so code between fork and exec is safe.
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        except OSError as error:
            output.write(f"cannot start {argv[0]}: {error.strerror}\n".encode())
            return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.shim", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--init", choices=("mpi", "rank_table", "dynamic_cluster"), default="mpi")
    parser.add_argument("--rank-table", type=Path)
    parser.add_argument("--device-ids", type=lambda text: [int(part) for part in text.split(",")], default=())
    parser.add_argument("--scheduler-host", default="")
    parser.add_argument("--scheduler-port", type=int, default=0)
    parser.add_argument("--join-timeout-s", type=float, default=0.0)
    parser.add_argument("trainer", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
