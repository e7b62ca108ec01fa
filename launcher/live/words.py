"""Puts a run's state into words: how it stands, what to do next, how long it still takes."""

import time

from launcher.contract.run_dir import DamagedRecordError
from launcher.records.attempt_record import progress_of
from launcher.records.run_facts import RunFacts, RunStateName
from launcher.supervision.failure import Failure

STATES: dict[RunStateName, str] = {
    "waiting": "Waiting",
    "running": "Running",
    "complete": "Complete",
    "stopped": "Stopped",
    "failed": "Failed",
    "lost": "Lost",
}
_NAMED = 4
_MOST_S = 1e10  # times beyond this come from damaged files, and a calendar may not have them
_PHASES = {
    "starting": "The ranks start: they build networks and read the checkpoint.",
    "compiling": "The ranks compile the first step.",
    "training": "The ranks train.",
    "validating": "The ranks validate.",
    "checkpointing": "The ranks save a checkpoint.",
    "sampling": "The ranks make samples.",
    "done": "The ranks are done and leave.",
}


def advice(facts: RunFacts) -> list[str]:
    """Say in a few lines how the run stands and what to do next."""
    saved = max((record.checkpoint_step for record in facts.records), default=0)
    resumes = f"The same command resumes it from step {saved:,}." if saved else "The same command starts it again."
    match facts.state:
        case "waiting":
            return ["No attempt has begun."]
        case "running":
            return [_running(facts)]
        case "complete":
            return ["All steps are made. The report has the results."]
        case "stopped":
            return ["It was asked to stop, and stopped.", resumes]
        case "lost":
            return [
                "Nothing runs, and the launcher left no verdict: it was killed, or its host died.",
                "Look at that host, then start the run again.",
                resumes,
            ]
        case "failed":
            return [*_failure(facts), resumes]


def _running(facts: RunFacts) -> str:
    record = facts.record
    if record is None:
        return "The launcher checks the machines and starts the ranks."
    if record.exit_code is not None:
        return f"Attempt {record.attempt} ended: {record.text}. The launcher starts the next one."
    silent = len(facts.statuses) - len(facts.alive()) - len(facts.ended)
    if silent > 0:
        return f"{silent} of {record.world_size} ranks have been silent for 15 s. The launcher ends hangs by itself."
    if facts.stragglers:
        hosts = ", ".join(f"{each.rank} on {_host(facts, each.rank)}" for each in facts.stragglers[:_NAMED])
        return f"Slow: rank {hosts}. All others wait for the slowest; vpred-launch doctor examines a machine."
    lead = facts.lead
    return f"{_PHASES[lead.phase]} Nothing to do." if lead else "The ranks are being started. Nothing to do."


def _host(facts: RunFacts, rank: int) -> str:
    return next((place.host for place in facts.plan.ranks if place.rank == rank), "an unknown host")


def _failure(facts: RunFacts) -> list[str]:
    """Return the five lines of failure.json, or what the attempt's record says."""
    try:
        failure = Failure.read(facts.run.attempt(facts.last_attempt).failure_json)
    except (DamagedRecordError, OSError) as error:
        return [str(error)]
    if failure is not None:
        return str(failure).splitlines()
    return [facts.record.text] if facts.record is not None and facts.record.text else ["It left no reason."]


def seconds_left(facts: RunFacts) -> float | None:
    """Estimate the time until the last step from the mean step of this attempt. None: it is not known."""
    if not facts.attempt_runs or facts.record is None or facts.lead is None:
        return None
    step_s = float(progress_of(facts.record, facts.statuses)["step_s"])
    left = facts.lead.total_steps - facts.lead.step
    return left * step_s if left > 0 and 0 < left * step_s < _MOST_S else None


def step_seconds(facts: RunFacts) -> float | None:
    """Return the mean wall time of a step in the newest attempt, with pauses. None: it is not known."""
    if facts.record is None:
        return None
    return float(progress_of(facts.record, facts.statuses).get("step_s", 0.0)) or facts.record.step_s or None


def duration(seconds: float) -> str:
    """Write a time span for a reader, with two units."""
    if not abs(seconds) < _MOST_S:
        return "not known"
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def clock(unix_s: float, now_unix_s: float) -> str:
    """Write a time of the server's zone, with its date if that is not today's."""
    if not abs(unix_s) < _MOST_S:
        return "not known"
    then, today = time.localtime(unix_s), time.localtime(now_unix_s)
    day = "" if then[:3] == today[:3] else time.strftime("%a %d %b ", then)
    return day + time.strftime("%H:%M %Z", then)


def size(size_bytes: float) -> str:
    """Write a size for a reader, in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size_bytes < 1024 or unit == "TiB":
            break
        size_bytes /= 1024
    return f"{size_bytes:.3g} {unit}" if size_bytes < 1000 else f"{size_bytes:,.0f} {unit}"
