"""`vpred-launch logs RUN`: what ranks wrote, of any attempt, and on request as they write it."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.account import AttemptRecord
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import AttemptDir, RunDir
from launcher.preflight import is_locked
from launcher.recipe import Trainer
from launcher.status import planned_hosts, require_run
from launcher.stream import LogStream, parse_ranks

_POLL_S = 0.5


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """`logs` among the launcher's commands."""
    text = "print the logs of a run's ranks, each line with its rank if there are several"
    parser = commands.add_parser("logs", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--rank", default="all", metavar="RANKS", help="all, a rank, or ranks such as 0,4-7")
    parser.add_argument("--attempt", type=int, metavar="N", help="default: the newest")
    parser.add_argument("--follow", action="store_true", help="go on while the run does, over restarts")
    parser.set_defaults(command=_logs)


def _logs(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    run = require_run(options.run_dir)
    number = options.attempt or run.last_attempt()
    if not 1 <= number <= run.last_attempt():
        raise ConfigError(f"--attempt: found {number} (the run has attempts 1 to {run.last_attempt()})")
    while number:
        ranks = parse_ranks(options.rank, len(planned_hosts(run)), "--rank")
        _print_attempt(run, number, ranks, options.follow and number == run.last_attempt())
        more = options.follow and number < run.last_attempt()
        number = number + 1 if more else 0
        if more:
            print(f"==> attempt {number} <==", flush=True)
    return ExitCode.OK


def _print_attempt(run: RunDir, number: int, ranks: Sequence[int], follow: bool) -> None:
    """The logs of one attempt; with `follow` until it has ended."""
    attempt = run.attempt(number)
    stream = LogStream(attempt, ranks, prefix=len(ranks) > 1)
    while True:
        # Asked before the logs are read: nothing is written after it has ended.
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
