"""Performs one `vpred-launch doctor`: preflight, all ranks twice, diagnosis. The second start takes cached graphs."""

import logging
import shutil
import sys
import time
from dataclasses import replace

from launcher.cluster.supervision import SupervisionSettings, Timeouts
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.doctor.diagnosis import diagnose
from launcher.doctor.examined import Examined, read_examined
from launcher.doctor.progress import DoctorProgress
from launcher.doctor.report import Report, of_preflight
from launcher.planning.job import Job
from launcher.processes.ssh import Ssh
from launcher.processes.sweep import sweep_hosts
from launcher.rank.lease import Lease
from launcher.records.event_log import EventLog
from launcher.records.run_lock import locked
from launcher.run.run import check_job, plan_job, write_files
from launcher.supervision.progress import unheard
from launcher.supervision.stop_requests import StopRequest, stop_requests
from launcher.supervision.supervise import supervise

logger = logging.getLogger(__name__)

# A rank that needs longer for its start, or for one item of a check, hangs. The cluster file may demand less.
_START_S = 300.0
_ITEM_S = 120.0
_STOP_GRACE_S = 5.0  # there is nothing to save


def examine(job: Job, as_json: bool) -> int:
    """Examine the machines of `job`, print the report on stdout, and return the exit code.

    Raises ConfigError: when the run directory is in use.
    """
    started_s = time.monotonic()
    if job.run.root.is_dir() and any(job.run.root.iterdir()):
        raise ConfigError(f"{job.run.root}: holds something already", "give the doctor a --run-dir that does not exist")
    lines, troubles = of_preflight(check_job(job))
    logs = ""
    if not troubles:
        with locked(job.run), unheard(), stop_requests() as stop:
            found = _both_starts(job, stop)
            shutil.rmtree(job.run.graphs(0).parent, ignore_errors=True)  # of no use to anybody else
        more, about_ranks = diagnose(found.records, found.hosts)
        lines, troubles, logs = [*lines, *more], [*about_ranks, *found.troubles], str(job.run.attempts)
    report = Report(lines, troubles, job.cluster.world_size, time.monotonic() - started_s, logs)
    print(report.to_json() if as_json else report)
    return ExitCode.OK if report.ok else ExitCode.FAILED


def _both_starts(job: Job, stop: StopRequest) -> Examined:
    """Start the ranks for all checks, and, when all have come to the end, once more for those after a restart."""
    events = EventLog(job.run.events_jsonl)
    first = _start(job, stop, events, ())
    if first.troubles:
        return first
    again = _start(job, stop, events, ("--before", "1"))
    return replace(again, records=first.records + again.records)


def _start(job: Job, stop: StopRequest, events: EventLog, options: tuple[str, ...]) -> Examined:
    cluster = job.cluster
    trainer = replace(job.trainer, argv=(*job.trainer.doctor, *options))
    plan = plan_job(replace(job, trainer=trainer))
    limits = cluster.supervision.timeouts
    timeouts = Timeouts(start_s=min(limits.start_s, _START_S), step_s=min(limits.step_s, _ITEM_S))
    supervision = SupervisionSettings(timeouts=timeouts, stragglers=cluster.supervision.stragglers)
    plan = plan.model_copy(update={"supervision": supervision, "stop_grace_s": _STOP_GRACE_S})
    write_files(job.run, plan)
    attempt = job.run.attempt(plan.attempt)
    attempt.root.mkdir(parents=True)
    progress = DoctorProgress(attempt, Lease(attempt.lease, cluster.launcher.lease_s), sys.stderr)
    verdict = supervise(plan, environment(), progress, stop, events)
    examined = read_examined(attempt, plan, verdict, stopped=stop.count > 0)
    if examined.troubles and (left := sweep_hosts(plan.hosts, job.run.root, Ssh())):
        logger.warning("could not look for ranks that still run on %s", ", ".join(left))
    return examined
