"""Performs a run inside its job (`run --submitted`), and puts the job back into the queue where that helps."""

import logging
import signal
import time
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import RecipeError, Trainer
from launcher.run.after_run import after_run
from launcher.run.guard import guarded
from launcher.run.run import RunResult, load_job, run_job
from launcher.submit.allocation import job_nodes
from launcher.submit.slurm import is_preempted, own_job_id
from launcher.submit.submitted import read_submitted
from launcher.supervision.stop_requests import StoppedBeforeRanksError, StopRequest

logger = logging.getLogger(__name__)

STOPPED_EARLY = "stopped before the ranks were started; the same command resumes"
# SIGTERM to the steps of a job also ends checks of the preflight, and ranks under mpirun.
_MAY_BE_PREEMPTED = (ExitCode.FAILED, ExitCode.BAD_CONFIG, 128 + signal.SIGTERM)
_GOES_ON = (ExitCode.OK, ExitCode.PREEMPTED)


def run_submitted(root: Path, trainer: Trainer, stop: StopRequest) -> int:
    """Run what was submitted as RUN, and return the exit code of the job.

    Raises ConfigError: outside a job, or when RUN was never submitted.
    """
    run = RunDir(root.absolute())
    job_id = own_job_id(environment())
    if job_id is None:
        raise ConfigError("--submitted: found no job of Slurm around this process", "submit it: vpred-launch submit")
    read_submitted(run)
    try:
        with guarded(run, job_id, job_nodes(environment())):
            result = _result(run, job_id, trainer, stop)
    except StoppedBeforeRanksError:
        logger.warning("%s", STOPPED_EARLY)
        result = RunResult(ExitCode.PREEMPTED)
    if result.exit_code in _MAY_BE_PREEMPTED and is_preempted(job_id):
        logger.warning("job %s: its nodes are taken for another job", job_id)
        result = RunResult(ExitCode.PREEMPTED)
    after_run(run, job_id, result.exit_code, hosts_lost=bool(result.lost))
    return result.exit_code


def _result(run: RunDir, job_id: str, trainer: Trainer, stop: StopRequest) -> RunResult:
    print(f"job {job_id}: begun {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime())}", flush=True)
    record = read_submitted(run)
    if job_id not in record.job_ids:  # `submit` has not written it yet, or was ended before it could
        record.changed(job_ids=(*record.job_ids, job_id)).write(run.submit.submitted_json)
    if record.is_chain and record.exit_code is not None and record.exit_code not in _GOES_ON:
        logger.error("an earlier job of the chain ended with exit code %d; no further one helps", record.exit_code)
        return RunResult(record.exit_code)
    if run.submit.cancelled.exists():
        logger.warning("cancelled before it began; submit it again to go on")
        return RunResult(ExitCode.PREEMPTED)
    try:
        job = load_job(run.submit.cluster_yaml, run.submit.recipe_yaml, run.root, (), trainer)
        return run_job(job, stop)
    except ConfigError as error:
        logger.error("%s", error)
        return RunResult(ExitCode.BAD_CONFIG)
    except RecipeError as error:
        return RunResult(error.exit_code)
