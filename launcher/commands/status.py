"""Implements `vpred-launch status RUN`: shows a run's state from the files that its ranks and launchers leave."""

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from launcher.contract.config import ConfigError, Section
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RankStatus, Record, RunDir
from launcher.planning.trainer import Trainer
from launcher.records.attempt_record import LostTime, lost_line, read_records
from launcher.records.event_log import describe_event, read_events
from launcher.records.plan_record import PlannedRank, PlannedRun
from launcher.records.run_facts import RunFacts, RunReader, RunStateName
from launcher.records.straggler_record import Straggler
from launcher.submit.jobs import newest_job
from launcher.submit.submitted import Submitted

logger = logging.getLogger(__name__)

_HEADINGS = ("rank", "host", "phase", "step", "own s/step", "img/s", "reported")


class RankState(Section):
    """Describes a rank by its last status.

    own_step_seconds: mean time of a step without collectives, s
    told_seconds_ago: age of the status, s
    """

    rank: int
    host: str
    phase: str
    step: int
    own_step_seconds: float | None
    images_per_second: float | None
    waiting: bool
    told_seconds_ago: float | None


class AttemptState(Section):
    """Describes one start of the ranks.

    exit_code: None while it runs, or when its launcher died
    lost: seconds that did not train
    """

    attempt: int
    exit_code: int | None
    text: str
    lost: LostTime


class JobLine(Section):
    """Describes the job of a submitted run.

    state: the scheduler's word for it, or why there is none
    restarts: number of times that the run went back into the queue
    """

    scheduler: str
    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    restarts: int = 0


class RunState(Record):
    """Describes a run.

    run_state: the state in full; "stopped", "failed" and "lost" (killed launcher) are kinds of "ended"
    engine: where the newest attempt computes its steps; on "device" the ranks' own seconds are those of their hosts
    job: None for a run that was never submitted
    images_per_second: sum over all ranks
    checkpoint_step: step of the newest checkpoint that the ranks know to be committed
    """

    run_dir: Path
    state: Literal["waiting", "running", "complete", "ended"]
    run_state: RunStateName
    engine: str
    step: int
    total_steps: int | None
    loss: float | None
    images_per_second: float | None
    checkpoint_step: int | None
    attempts: tuple[AttemptState, ...]
    stragglers: tuple[Straggler, ...]
    ranks: tuple[RankState, ...]
    job: JobLine | None = None


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `status` to the launcher's commands."""
    text = "show the state of a run: step, rates, attempts, last checkpoint, every rank"
    parser = commands.add_parser("status", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    text = "show what the launcher saw and decided in all attempts instead: hangs, signals, restarts and why"
    parser.add_argument("--events", action="store_true", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(command=_status)


def _status(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    run = RunDir(options.run_dir.absolute())
    if Submitted.read(run.submit.submitted_json) is None:
        run = require_run(options.run_dir)
    if options.events:
        return _show_events(run, as_json=options.json)
    state = read_state(run, time.time())
    if options.json:
        print(state.model_dump_json(indent=2))
        return ExitCode.OK
    print(describe_state(state))
    records = read_records(run)
    if len(records) > 1:
        print(lost_line(records))
    return ExitCode.OK


def _show_events(run: RunDir, *, as_json: bool) -> int:
    events, damaged = read_events(run.events_jsonl)
    for number in damaged:
        logger.warning("%s: line %d is not an event; the disk may have been full", run.events_jsonl, number)
    if as_json:
        print(json.dumps([event.model_dump(mode="json") for event in events], indent=2))
    else:
        print(*(f"{describe_event(event)}\n" for event in events), sep="", end="")
    return ExitCode.OK


def require_run(root: Path) -> RunDir:
    """Return the run in `root`. Raises ConfigError: when none was started there."""
    run = RunDir(root.absolute())
    if run.last_attempt() == 0 or not run.plan_json.exists():
        raise ConfigError(f"{root}: no run was started there; give the --run-dir of a run")
    return run


def planned_hosts(run: RunDir) -> dict[int, str]:
    """Return rank -> host, as the newest attempt was planned."""
    return {place.rank: place.host for place in (PlannedRun.read(run.plan_json) or PlannedRun()).ranks}


def read_state(run: RunDir, now_unix_s: float) -> RunState:
    """Read the run's state at `now_unix_s`."""
    state = state_of(RunReader(run).read(now_unix_s))
    return state.model_copy(update={"job": _job(run)})


def state_of(facts: RunFacts) -> RunState:
    """Return the state that the facts show, without the run's job."""
    lead, statuses = facts.lead, facts.statuses
    rates = [each.images_per_second for each in statuses.values() if each.images_per_second is not None]
    saved = [each.checkpoint_step for each in statuses.values() if each.checkpoint_step is not None]
    last = facts.last_attempt
    ended: Literal["complete", "ended"] = "complete" if facts.complete else "ended"
    return RunState(
        run_dir=facts.run.root,
        state="running" if facts.lives else ended if last or facts.complete else "waiting",
        run_state=facts.state,
        engine=facts.plan.engine,
        step=0 if lead is None else lead.step,
        total_steps=None if lead is None else lead.total_steps,
        loss=None if lead is None else lead.loss,
        images_per_second=sum(rates) if rates and facts.lives else None,
        checkpoint_step=max(saved, default=None),
        attempts=tuple(_attempt(facts, number) for number in range(1, last + 1)),
        stragglers=facts.stragglers,
        ranks=tuple(_rank(place, statuses.get(place.rank), facts.now_unix_s) for place in facts.plan.ranks),
    )


def _job(run: RunDir) -> JobLine | None:
    """Ask the scheduler about the run's job. Its silence is no fault of the run."""
    record = Submitted.read(run.submit.submitted_json)
    if record is None:
        return None
    restarts, newest = record.requeues, record.job_ids[-1] if record.job_ids else "not known"
    try:
        job = newest_job(record)
    except ConfigError as error:
        return JobLine(scheduler=record.scheduler, job_id=newest, state=f"not known ({error})", restarts=restarts)
    if job is None:
        state = f"not known to {record.scheduler.capitalize()} any more"
        return JobLine(scheduler=record.scheduler, job_id=newest, state=state, restarts=restarts)
    return JobLine(
        scheduler=record.scheduler,
        job_id=job.job_id,
        state=job.state,
        reason=job.reason,
        nodes=job.nodes,
        time_left=job.time_left,
        restarts=restarts or job.restarts,
    )


def describe_state(state: RunState) -> str:
    """Describe the state for a reader: a few lines, and one for each rank."""
    share = "" if not state.total_steps else f" of {state.total_steps} ({100 * state.step / state.total_steps:.0f} %)"
    figures = [f"{state.step}{share}"]
    figures += [] if state.loss is None else [f"loss {state.loss:.4f}"]
    figures += [] if state.images_per_second is None else [f"{state.images_per_second:.1f} img/s"]
    saved = "none by this attempt" if state.checkpoint_step is None else f"step {state.checkpoint_step}"
    lines = [f"run         {state.run_dir}: {state.state}", f"step        {', '.join(figures)}", f"checkpoint  {saved}"]
    if state.job is not None:
        lines.append(f"job         {_job_words(state.job)}")
    for each in state.attempts:
        code = "" if each.exit_code is None else f"exit code {each.exit_code}{': ' if each.text else ''}"
        lines.append(f"attempt {each.attempt:<3} {code}{each.text}")
    for slow in state.stragglers:
        lines.append(f"slow        rank {slow.rank}: {slow.describe(state.engine)}")
    return "\n".join([*lines, *(_table([_HEADINGS, *map(_row, state.ranks)]) if state.ranks else ())])


def _job_words(job: JobLine) -> str:
    words = [f"{job.scheduler} {job.job_id}: {job.state}{f' ({job.reason})' if job.reason else ''}"]
    words += [f"on {job.nodes}"] if job.nodes else []
    words += [f"{job.time_left} left"] if job.time_left else []
    words += [f"{job.restarts} restarts"] if job.restarts else []
    return ", ".join(words)


def _attempt(facts: RunFacts, number: int) -> AttemptState:
    record = next((record for record in facts.records if record.attempt == number), None)
    lost = LostTime() if record is None else record.lost
    if record is not None and record.exit_code is not None:
        return AttemptState(attempt=number, exit_code=record.exit_code, text=record.text, lost=lost)
    text = "running" if facts.lives and number == facts.last_attempt else "its launcher left no verdict"
    return AttemptState(attempt=number, exit_code=None, text=text, lost=lost)


def _rank(place: PlannedRank, status: RankStatus | None, now_unix_s: float) -> RankState:
    if status is None:
        phase, step, own, rate, waiting, ago = "not begun", 0, None, None, False, None
    else:
        phase, step, rate, waiting = status.phase, status.step, status.images_per_second, status.waiting
        own = status.own_seconds / status.timed_steps if status.timed_steps else None
        ago = max(0.0, now_unix_s - status.updated_unix_s)
    return RankState(
        rank=place.rank,
        host=place.host,
        phase=phase,
        step=step,
        own_step_seconds=own,
        images_per_second=rate,
        waiting=waiting,
        told_seconds_ago=ago,
    )


def _row(rank: RankState) -> tuple[str, ...]:
    return (
        str(rank.rank),
        rank.host,
        f"{rank.phase}{', waiting' if rank.waiting else ''}",
        str(rank.step),
        "-" if rank.own_step_seconds is None else f"{rank.own_step_seconds:.3f}",
        "-" if rank.images_per_second is None else f"{rank.images_per_second:.1f}",
        "-" if rank.told_seconds_ago is None else f"{rank.told_seconds_ago:.0f} s ago",
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
