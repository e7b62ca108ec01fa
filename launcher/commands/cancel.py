"""Implements `vpred-launch cancel RUN`: removes a run from the queue, or stops it with a checkpoint."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import Trainer
from launcher.submit.jobs import active_jobs, newest_job
from launcher.submit.schedulers import SCHEDULERS
from launcher.submit.submitted import read_submitted


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `cancel` to the launcher's commands."""
    text = "take a submitted run out of the queue, or stop it with a checkpoint; it does not go on by itself"
    parser = commands.add_parser("cancel", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory; that of a sweep stops all its runs")
    text = "let the scheduler end the job: ranks have its grace time, such as Slurm's KillWait, for a checkpoint"
    parser.add_argument("--now", action="store_true", help=text)
    parser.set_defaults(command=_cancel)


def _cancel(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    if overrides:
        raise ConfigError(f"found {overrides[0]!r} (cancel takes no overrides)")
    run = RunDir(options.run_dir.absolute())
    sweep = read_submitted(run).sweep
    for each in [RunDir(run.root / name) for name in sweep] or [run]:
        print(f"{each.root}: {_cancel_run(each, now=options.now)}")
    return ExitCode.OK


def _cancel_run(run: RunDir, *, now: bool) -> str:
    """Cancel the run's jobs, and say what was done."""
    record = read_submitted(run)
    active = active_jobs(record)
    if not active:
        newest = newest_job(record)
        ids = ", ".join(record.job_ids) or "none"
        return f"no job to cancel (job {ids} {'is not known any more' if newest is None else f'ended: {newest.state}'})"
    # It comes before the signal: a run that stops looks for it.
    write_atomic(run.submit.cancelled, "")
    done = []
    for job in active:  # newest first, so that no waiting job of a chain begins meanwhile
        SCHEDULERS[record.scheduler].cancel(job, now=now)
        gently = job.phase == "running" and not now
        done.append(f"job {job.job_id} {'was asked to stop with a checkpoint' if gently else 'was cancelled'}")
    return "; ".join(done)
