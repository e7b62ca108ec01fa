"""Performs one `vpred-launch run`, from two files to a verdict. Its order finds mistakes before they cost time."""

import logging
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import RunDir, Summary
from launcher.planning.job import Job, split_overrides
from launcher.planning.mpirun import find_mpirun
from launcher.planning.plan import LaunchPlan, describe, make_plan, profile_options, shared_targets
from launcher.planning.trainer import Trainer, is_complete, rank_counts, read_recipe, resolve_recipe
from launcher.preflight.preflight import preflight, trial_on_one_host
from launcher.processes.srun import remote_for
from launcher.processes.sweep import sweep_hosts
from launcher.rank.lease import Lease
from launcher.ranktable.controller_table import chosen_table
from launcher.records.attempt_record import AttemptRecord, lost_line, read_records, without_verdict
from launcher.records.event_log import EventLog
from launcher.records.finding import Finding
from launcher.records.log_stream import parse_ranks
from launcher.records.plan_record import PlannedRun
from launcher.records.rank_files import AttemptFiles
from launcher.records.run_facts import newest_time
from launcher.records.run_lock import locked
from launcher.run.attempt_recorder import AttemptRecorder, first_record
from launcher.run.live_page import shown as shown_at
from launcher.run.published import Published
from launcher.run.recovery import Attempted, recover
from launcher.submit.allocation import allocated
from launcher.supervision.progress import make_progress, unheard
from launcher.supervision.stop_requests import StopRequest
from launcher.supervision.supervise import supervise
from launcher.supervision.verdict import Verdict

logger = logging.getLogger(__name__)

_LEVELS = {"warning": logging.WARNING, "error": logging.ERROR}


def load_job(
    cluster_file: Path,
    recipe: Path,
    run_dir: Path | None,
    overrides: Sequence[str],
    trainer: Trainer,
    *,
    profiled_steps: int = 0,
    try_mpi: bool = False,
    data: bool = True,
) -> Job:
    """Load and check both documents of a launch. The hosts of a cluster file with `submit` are those of this job.

    run_dir: None means runs/RECIPE in the current directory
    overrides: those that start with "cluster." go to the cluster file, the others to the trainer
    profiled_steps: number of steps that each rank records with MindSpore's profiler
    try_mpi: on one host, try MPI while the trainer checks the recipe; several hosts must be checked before that
    data: have the trainer check the data and the weights too

    Raises ConfigError: on a mistake in the cluster file or the rank table. Raises RecipeError: when the trainer's check
    of the recipe fails.
    """
    ours, theirs = split_overrides(overrides)
    cluster = allocated(load_cluster(cluster_file, ours), environment(), remote_for(environment()))
    if cluster.launcher.rank_table is not None:
        chosen_table(cluster)  # report its faults before anything else costs time
    with trial_on_one_host(cluster, environment()) if try_mpi else nullcontext() as trial:
        run = RunDir((run_dir or Path("runs") / recipe.stem).absolute())
        found_recipe = read_recipe(run)
        device = [*cluster.device_options, *profile_options(profiled_steps)]
        train_yaml = resolve_recipe(trainer, recipe, device, cluster.world_size, run, theirs, data=data)
        mpi = trial.finding() if trial else None
        return Job(cluster, train_yaml, found_recipe, run, trainer, profiled_steps, mpi, data)


def plan_job(job: Job) -> LaunchPlan:
    """Plan what `run` would do now. Raises ConfigError: when there is no usable mpirun."""
    return make_plan(
        cluster=job.cluster,
        mpirun=find_mpirun(job.cluster.launcher.mpirun, environment()) if job.cluster.needs_mpirun else None,
        python=Path(sys.executable),
        trainer=job.trainer.argv,
        run_dir=job.run.root,
        attempt=job.run.next_attempt(),
        train_yaml=job.train_yaml,
        profiled_steps=job.profiled_steps,
    )


def check_job(job: Job) -> list[Finding]:
    """Run the preflight for this job on this machine, now."""
    return preflight(job, environment(), remote_for(environment()))


@dataclass(frozen=True)
class RunResult:
    """Says how a run ended.

    lost: hosts that could not be reached after its last attempt
    """

    exit_code: int
    lost: tuple[str, ...] = ()


def run_job(job: Job, stop: StopRequest, streamed: str | None = None, listen: str | None = None) -> RunResult:
    """Check, plan, write, start and watch. Prints the outcome on stdout or stderr.

    stop: from stop_requests(), whose block surrounds this; ranks may run from the first attempt on
    streamed: ranks whose logs are shown, as parse_ranks reads them
    listen: ADDRESS:PORT of the live page, None for none

    Raises ConfigError: on a mistake that stops the launch. Raises KeyboardInterrupt: when a stop signal comes before.
    """
    if (summary := is_complete(job.run, job.train_yaml)) is not None:
        print(f"{job.run.root} is already complete; give another --run-dir to train again")
        print(closing_line(job.run, summary))
        return RunResult(ExitCode.OK)
    shown = parse_ranks(streamed, job.cluster.world_size, "--stream") if streamed else []
    findings = check_job(job)
    for finding in findings:
        if finding.severity != "ok":
            logger.log(_LEVELS[finding.severity], "%s", finding)
    if any(finding.severity == "error" for finding in findings):
        return RunResult(ExitCode.BAD_CONFIG)
    with locked(job.run), shown_at(job.run, listen), unheard():
        if read_recipe(job.run) != job.found_recipe:
            raise ConfigError(f"{job.run.root}: another launcher has used it in the meantime; start again")
        job.run.summary_json.unlink(missing_ok=True)  # it marks the end of a complete run, which now gets longer
        sweep = partial(sweep_hosts, run_dir=job.run.root, remote=remote_for(environment()))
        if job.run.last_attempt() and (left := sweep([host.address for host in job.cluster.known_hosts])):
            logger.warning("could not look for ranks of earlier attempts on %s", ", ".join(left))
        counts = partial(rank_counts, job.trainer, job.run, job.cluster.world_size)
        events = EventLog(job.run.events_jsonl)
        stop.ranks_may_run = True
        published = Published(job.run, shared_targets(job.cluster, job.run.root))
        attempt = partial(_attempt, job, stop, events, shown, published)
        try:
            ended = recover(job.cluster, attempt, sweep, counts, stop, events, published.beat, in_job=stop.in_job)
            events.write("run_ended", ended.record.attempt, exit_code=int(ended.verdict.exit_code))
        finally:
            published.end()
        _report(job.run, ended.verdict)
        records = read_records(job.run)
        if len(records) > 1:
            logger.info("%s", lost_line(records))
    return RunResult(ended.verdict.exit_code, ended.lost)


def _attempt(
    job: Job,
    stop: StopRequest,
    events: EventLog,
    shown: Sequence[int],
    published: Published,
    cluster: ClusterConfig,
) -> Attempted:
    """Plan, write, start and watch one attempt on `cluster`. It may have fewer ranks than `shown` names."""
    plan = plan_job(replace(job, cluster=cluster))
    write_files(job.run, plan)
    print(describe(plan), flush=True)
    lease = Lease(job.run.attempt(plan.attempt).lease, cluster.launcher.lease_s)
    progress = make_progress(sys.stderr)
    earlier = _judged_records(job.run)
    recorder = AttemptRecorder(job.run, first_record(plan), earlier, lease, progress, events, published)
    published.begin(PlannedRun.read(job.run.plan_json) or PlannedRun())
    recorder.begin()
    streamed = [rank for rank in shown if rank < len(plan.ranks)]
    verdict = supervise(plan, environment(), recorder, stop, events, streamed)
    recorder.end(plan, verdict)
    return Attempted(plan, verdict, recorder.record)


def _judged_records(run: RunDir) -> list[AttemptRecord]:
    """Read the records of the attempts so far. One whose launcher was killed is completed by its last signs of life."""
    records = read_records(run)
    for number, record in enumerate(records):
        if record.exit_code is None:
            attempt = run.attempt(record.attempt)
            files = AttemptFiles(attempt)
            files.look(0.0)
            lease_unix_s = newest_time([attempt.lease]) or record.started_unix_s
            records[number] = without_verdict(record, files.statuses, lease_unix_s)
    return records


def closing_line(run: RunDir, summary: Summary) -> str:
    """Summarise the results and say where they lie."""
    retrieval = "" if summary.retrieval is None else f", retrieval {summary.retrieval:.2f}"
    return (
        f"done: {summary.steps} steps, {summary.samples_seen} samples in {summary.seconds:.0f} s, "
        f"loss {summary.final_loss:.4f}{retrieval}; report {run.root / summary.report}, "
        f"samples {run.root / summary.samples}, weights {run.root / summary.weights}"
    )


def write_files(run: RunDir, plan: LaunchPlan) -> None:
    """Write the plan and its files. On an error remove the new ones, so that nothing looks half set up."""
    contents = {**plan.files, run.plan_json: plan.to_json()}
    new = [path for path in contents if not path.exists()]
    try:
        for path, text in contents.items():
            write_atomic(path, text)
    except OSError as error:
        for path in new:
            path.unlink(missing_ok=True)
        raise ConfigError(
            f"{run.root}: cannot be written ({error.strerror}); free some space or give another --run-dir"
        ) from None


def _report(run: RunDir, verdict: Verdict) -> None:
    """Print at most five lines on how the run ended."""
    if verdict.exit_code == ExitCode.OK:
        if verdict.text:
            logger.warning("warning: %s", verdict.text)
        summary = Summary.read(run.summary_json)
        if summary is not None:
            print(closing_line(run, summary), flush=True)
        return
    logger.log(logging.WARNING if verdict.failure is None else logging.ERROR, "%s", verdict.failure or verdict.text)
