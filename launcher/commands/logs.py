"""Implements `vpred-launch logs RUN`: prints ranks' logs of any attempt, and on request follows them."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.commands.status import planned_hosts, require_run
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, RunDir
from launcher.planning.trainer import Trainer
from launcher.records.attempt_record import AttemptRecord
from launcher.records.log_stream import LogStream, parse_ranks
from launcher.records.run_lock import is_locked
from launcher.submit.jobs import end_of
from launcher.submit.submitted import read_submitted

_POLL_S = 0.5


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `logs` to the launcher's commands."""
    text = "print the logs of a run's ranks, each line with its rank if there are several"
    parser = commands.add_parser("logs", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--rank", default="all", metavar="RANKS", help="all, a rank, or ranks such as 0,4-7")
    parser.add_argument("--attempt", type=int, metavar="N", help="default: the newest")
    text = "instead, the output of the launcher of a submitted run, over all its jobs and their restarts"
    parser.add_argument("--launcher", action="store_true", help=text)
    parser.add_argument("--follow", action="store_true", help="go on while the run does, over restarts")
    parser.set_defaults(command=_logs)


def _logs(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    if options.launcher:
        return _print_jobs(RunDir(options.run_dir.absolute()), follow=options.follow)
    run = require_run(options.run_dir)
    number = run.last_attempt() if options.attempt is None else options.attempt
    if not 1 <= number <= run.last_attempt():
        raise ConfigError(f"--attempt: found {number} (the run has attempts 1 to {run.last_attempt()})")
    size = first_size = _world_size(run, number)
    while True:
        # An attempt after the first may have fewer ranks.
        ranks = [rank for rank in parse_ranks(options.rank, max(size, first_size), "--rank") if rank < size]
        _print_attempt(run, number, ranks, options.follow and number == run.last_attempt())
        if not (options.follow and _is_followed(run, number)):
            break
        number += 1
        size = _world_size(run, number)
        print(f"==> attempt {number} <==", flush=True)
    return ExitCode.OK


def _print_jobs(run: RunDir, *, follow: bool) -> int:
    """Print the output of the run's jobs, oldest first, with `follow` until the run has ended."""
    shown: dict[Path, int] = {}
    while True:
        ended = not follow or end_of(run) is not None  # before the last look
        for log in (run.submit.job_log(job_id) for job_id in read_submitted(run).job_ids):
            if not log.exists():
                continue
            with log.open("rb") as file:
                file.seek(shown.get(log, 0))
                text = file.read()
            shown[log] = shown.get(log, 0) + len(text)
            sys.stdout.write(text.decode(errors="replace"))
        sys.stdout.flush()
        if ended:
            return ExitCode.OK
        time.sleep(_POLL_S)


def _world_size(run: RunDir, number: int) -> int:
    """Return the number of ranks of an attempt, which may differ from the newest plan's."""
    record = AttemptRecord.read(run.attempt(number).record)
    return len(planned_hosts(run)) if record is None else record.world_size


def _is_followed(run: RunDir, number: int) -> bool:
    """Return whether another attempt has begun. It may come after a delay: wait for it while the launcher lives."""
    while run.last_attempt() == number:
        if not is_locked(run.lock):
            return run.last_attempt() > number
        time.sleep(_POLL_S)
    return True


def _print_attempt(run: RunDir, number: int, ranks: Sequence[int], follow: bool) -> None:
    """Print the logs of one attempt, with `follow` until it has ended."""
    attempt = run.attempt(number)
    stream = LogStream(attempt, ranks, prefix=len(ranks) > 1)
    while True:
        # Check this before reading the logs: nothing is written after the attempt has ended.
        record = AttemptRecord.read(attempt.record)
        ended = (record is not None and record.exit_code is not None) or not is_locked(run.lock)
        for line in stream.lines(_log_bytes(attempt, ranks)):
            print(line)
        sys.stdout.flush()
        if ended or not follow:
            break
        time.sleep(_POLL_S)
    for line in stream.rest():
        print(line)


def _log_bytes(attempt: AttemptDir, ranks: Sequence[int]) -> dict[int, int]:
    logs = {rank: attempt.log(rank) for rank in ranks}
    return {rank: log.stat().st_size for rank, log in logs.items() if log.exists()}
