"""One per rank, between mpirun and the trainer: log file, signals, and a true account of its end.

`python -P -m launcher.shim --run-dir D --attempt N --lease-s S [--unset NAME ...] -- TRAINER ...`
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from launcher.contract.process import die_with_parent, living_parent
from launcher.lease import end_without_lease

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
    mpirun = living_parent()
    if mpirun is None:
        print("launcher.shim: mpirun is gone; not starting a trainer nobody watches", file=sys.stderr)
        return _NOT_STARTED
    die_with_parent(mpirun)
    # Imported only now: pydantic takes a moment, and mpirun may die in it.
    from launcher.contract.environment import environment
    from launcher.contract.identity import read_identity
    from launcher.contract.run_dir import Outcome, RankStatus, RunDir

    options = _parser().parse_args(argv)
    forwarder = _Forwarder()
    env = environment()
    identity = read_identity(env)
    attempt = RunDir(options.run_dir).attempt(options.attempt)
    attempt.root.mkdir(parents=True, exist_ok=True)
    trainer_env = {name: value for name, value in env.items() if name not in options.unset}
    guard = partial(end_without_lease, attempt.lease, options.lease_s, daemon_pid=mpirun)
    pid, returncode = _run_trainer(options.trainer, trainer_env, attempt.log(identity.rank), forwarder, guard)
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


def _run_trainer(
    argv: Sequence[str],
    env: dict[str, str],
    log: Path,
    forwarder: _Forwarder,
    guard: Callable[[subprocess.Popen[bytes]], None],
) -> tuple[int, int]:
    """The trainer's pid and return code; (0, 127) when it cannot be started."""
    with log.open("ab") as output:
        try:
            trainer = subprocess.Popen(
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
            return 0, _NOT_STARTED
    forwarder.attach(trainer)
    guard(trainer)
    return trainer.pid, trainer.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launcher.shim", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--lease-s", type=float, required=True)
    parser.add_argument("--unset", action="append", default=[], metavar="NAME")
    parser.add_argument("trainer", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
