"""Decides on a Slurm job when its run has ended, keeps the decision, and puts the job back into the queue."""

import logging
import os
import signal
import time

from launcher.cluster.config import load_cluster
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.submit.requeue import RunEnd, decide_requeue
from launcher.submit.slurm import Slurm, requeue, submit_after
from launcher.submit.submitted import Submitted, read_submitted, sweep_root

logger = logging.getLogger(__name__)

# Slurm ends a job that it has requeued, in its own time.
_END_OF_JOB_S = 600.0
_STATE_TRIES = 5


def after_run(run: RunDir, job_id: str, exit_code: int, *, hosts_lost: bool) -> None:
    """Decide on the job whose run has ended with `exit_code`. When it is requeued this process ends with the job."""
    cluster = load_cluster(run.submit.cluster_yaml)
    settings = cluster.submit
    end = RunEnd(
        exit_code=exit_code,
        hosts_lost=hosts_lost,
        cancelled=run.submit.cancelled.exists(),
        state=_state(job_id),
        checkpoint_step=run.committed_step(),
    )
    most = 0 if settings is None else settings.max_requeues
    decision = decide_requeue(end, read_submitted(run), most, cluster.restart.max_without_progress)
    decision.record.write(run.submit.submitted_json)
    if decision.why:
        logger.warning("job %s: %s", job_id, decision.why)
    if decision.action == "requeue":
        _requeue(run, job_id, decision.record)


def _state(job_id: str) -> str:
    """Return Slurm's word for this job. Its controller may be busy for a while."""
    for left in reversed(range(_STATE_TRIES)):
        try:
            job = Slurm().query(job_id)
            return "unknown to Slurm" if job is None else job.state
        except ConfigError as error:
            logger.warning("%s", error)
            time.sleep(2.0 if left else 0.0)
    return "Slurm does not answer"


def _requeue(run: RunDir, job_id: str, record: Submitted) -> None:
    """Put the job back into the queue, or where Slurm refuses that, submit another one that starts after it."""
    refused = requeue(job_id)
    if refused is None:
        _await_end()
        return
    script = RunDir(sweep_root(run) or run.root).submit.script
    new = submit_after(script, job_id)
    logger.warning("job %s: %s; submitted job %s instead", job_id, refused, new)
    record.changed(job_ids=(*record.job_ids, new)).write(run.submit.submitted_json)


def _await_end() -> None:
    """Wait for Slurm's end of this job. It ends with SIGTERM or SIGKILL, and not by itself."""
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda received, frame: os._exit(ExitCode.PREEMPTED))
    time.sleep(_END_OF_JOB_S)
