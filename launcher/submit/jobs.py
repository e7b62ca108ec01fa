"""Answers questions about the jobs of a run: which are active, how they ended, and which must end first."""

import re
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir, Summary
from launcher.submit.scheduler import JobState
from launcher.submit.schedulers import SCHEDULERS
from launcher.submit.submitted import Submitted, read_submitted

_JOB_ID = re.compile(r"[1-9]\d*(_\d+)?", re.ASCII)


def active_jobs(record: Submitted) -> list[JobState]:
    """Return the jobs that wait or run, the newest first. Raises ConfigError: when the scheduler does not answer."""
    scheduler = SCHEDULERS[record.scheduler]
    states = (scheduler.query(job_id) for job_id in reversed(record.job_ids))
    return [state for state in states if state is not None and state.phase != "ended"]


def newest_job(record: Submitted) -> JobState | None:
    """Return the job that matters now: one that runs, else one that waits, else the newest that is known."""
    scheduler = SCHEDULERS[record.scheduler]
    states = [scheduler.query(job_id) for job_id in reversed(record.job_ids)]
    known = [state for state in states if state is not None]
    return min(known, key=lambda state: ("running", "pending", "ended").index(state.phase), default=None)


def jobs_before(after: str, name: str) -> tuple[str, ...]:
    """Return the ids of the jobs that must end first, by `submit --after`. It is empty when the run is complete.

    after: a job's id, or the directory of a submitted run
    name: of the scheduler

    Raises ConfigError: when there is no such job, or it ended without success. Slurm would start the new job at once.
    """
    if _JOB_ID.fullmatch(after) and not Path(after).is_dir():
        job_id = after
    else:
        run = RunDir(Path(after).absolute())
        record = read_submitted(run)
        if Summary.read(run.summary_json) is not None:
            return ()
        if record.scheduler != name or not record.job_ids:
            raise ConfigError(f"--after: found {after} (it was submitted to {record.scheduler}, this run to {name})")
        job_id = record.job_ids[-1]
    state = SCHEDULERS[name].query(job_id)
    if state is None:
        raise ConfigError(f"--after: found {after} (job {job_id} is not known to the scheduler)")
    if state.phase == "ended" and state.state != "COMPLETED":
        raise ConfigError(f"--after: found {after} (job {job_id} has ended: {state.state})")
    return (job_id,)


def end_of(run: RunDir) -> int | None:
    """Return the exit code of a submitted run, None as long as it goes on. A job that left no code has failed.

    Raises ConfigError: when the scheduler does not answer.
    """
    record = read_submitted(run)
    if record.sweep:
        codes = [end_of(RunDir(run.root / each)) for each in record.sweep]
        known = [code for code in codes if code is not None]
        return None if len(known) < len(codes) else next((code for code in known if code), 0)
    if record.exit_code is not None and not (record.is_chain and active_jobs(record)):
        return record.exit_code
    if active_jobs(record):
        return None
    code = read_submitted(run).exit_code  # it may have ended between the two looks
    return _without_code(run) if code is None else code


def _without_code(run: RunDir) -> int:
    """Return the code for a run whose last job is gone without one: cancelled, or killed."""
    newest = newest_job(read_submitted(run))
    if newest is not None and newest.exit_code is not None:
        return newest.exit_code
    stopped = run.submit.cancelled.exists() or (newest is not None and newest.state == "CANCELLED")
    return ExitCode.PREEMPTED if stopped else ExitCode.FAILED
