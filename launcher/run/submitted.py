"""Performs a run inside its job (`run --submitted`), and puts the job back into the queue where that helps."""

import logging
import os
import signal
import time
from pathlib import Path

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import RecipeError, Trainer
from launcher.run.run import RunResult, load_job, run_job
from launcher.submit.requeue import RunEnd, decide_requeue
from launcher.submit.slurm import Slurm, own_job_id, requeue, submit_after
from launcher.submit.submitted import Submitted, read_submitted, sweep_root
from launcher.supervision.stop_requests import StoppedBeforeRanksError, StopRequest

logger = logging.getLogger(__name__)

STOPPED_EARLY = "stopped before the ranks were started; the same command resumes"
# Slurm ends a job that it has requeued, in its own time.
_END_OF_JOB_S = 600.0
_STATE_TRIES = 5
_GOES_ON = (ExitCode.OK, ExitCode.PREEMPTED)


def run_submitted(root: Path, trainer: Trainer, stop: StopRequest) -> int:
    """Run what was submitted as RUN, and return the exit code of the job.

    Raises ConfigError: outside a job, or when RUN was never submitted.
    """
    run = RunDir(root.absolute())
    record = read_submitted(run)
    job_id = own_job_id(environment())
    if job_id is None:
        raise ConfigError("--submitted: found no job of Slurm around this process", "submit it: vpred-launch submit")
    if job_id not in record.job_ids:
        record = record.changed(job_ids=(*record.job_ids, job_id))
        record.write(run.submit.submitted_json)
    if record.is_chain and record.exit_code is not None and record.exit_code not in _GOES_ON:
        logger.error("an earlier job of the chain ended with exit code %d; no further one helps", record.exit_code)
        return record.exit_code
    cluster = load_cluster(run.submit.cluster_yaml)
    print(f"job {job_id}: begun {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}", flush=True)
    result = _result(run, trainer, stop)
    return _after(run, cluster, job_id, result)


def _result(run: RunDir, trainer: Trainer, stop: StopRequest) -> RunResult:
    if run.submit.cancelled.exists():
        logger.warning("cancelled before it began; submit it again to go on")
        return RunResult(ExitCode.PREEMPTED)
    try:
        job = load_job(run.submit.cluster_yaml, run.submit.recipe_yaml, run.root, (), trainer)
        return run_job(job, stop)
    except StoppedBeforeRanksError:
        logger.warning("%s", STOPPED_EARLY)
        return RunResult(ExitCode.PREEMPTED)
    except ConfigError as error:
        logger.error("%s", error)
        return RunResult(ExitCode.BAD_CONFIG)
    except RecipeError as error:
        return RunResult(error.exit_code)


def _after(run: RunDir, cluster: ClusterConfig, job_id: str, result: RunResult) -> int:
    """Decide on the job, keep the decision, and act on it."""
    settings = cluster.submit
    end = RunEnd(
        exit_code=result.exit_code,
        hosts_lost=bool(result.lost),
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
    return result.exit_code


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
