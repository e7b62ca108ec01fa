"""Defines RUN/submit/submitted.json: which jobs a run was submitted as, and how often it went back into the queue."""

import time
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.run_dir import Record, RunDir


class Submitted(Record):
    """Records a submission.

    job_ids: its jobs, the newest last; several in a chain, and where the scheduler refused to requeue one
    cluster: name of the cluster file
    command: what was handed to the scheduler
    digest: SHA-256 of the script or manifest
    sweep: names of the runs below this one that the job is an array of
    is_chain: the next job of the chain goes on, so that none is requeued
    requeues: number of times that the run went back into the queue by its own decision
    without_progress: how many of the last of them left no newer checkpoint
    checkpoint_step: step of the newest checkpoint at the last requeue
    exit_code: of the run, None as long as it goes on
    """

    scheduler: str
    job_ids: tuple[str, ...]
    cluster: str
    submitted_unix_s: float
    command: tuple[str, ...]
    digest: str
    sweep: tuple[str, ...] = ()
    is_chain: bool = False
    requeues: int = 0
    without_progress: int = 0
    checkpoint_step: int = 0
    exit_code: int | None = None

    def changed(self, **fields: object) -> "Submitted":
        return self.model_copy(update=fields)


def read_submitted(run: RunDir) -> Submitted:
    """Return the run's submission. Raises ConfigError: when it was never submitted."""
    record = Submitted.read(run.submit.submitted_json)
    if record is None:
        raise ConfigError(f"{run.root}: was never submitted", "submit it: vpred-launch submit --run-dir DIR")
    return record


def first_record(
    scheduler: str, cluster: str, command: tuple[str, ...], digest: str, sweep: tuple[str, ...], *, is_chain: bool
) -> Submitted:
    """Make the record of a submission whose jobs have no ids yet."""
    return Submitted(
        scheduler=scheduler,
        job_ids=(),
        cluster=cluster,
        submitted_unix_s=time.time(),
        command=command,
        digest=digest,
        sweep=sweep,
        is_chain=is_chain,
    )


def sweep_root(run: RunDir) -> Path | None:
    """Return the directory of the sweep that `run` is a part of, None when it is no part of one."""
    record = Submitted.read(RunDir(run.root.parent).submit.submitted_json)
    return run.root.parent if record is not None and run.root.name in record.sweep else None
