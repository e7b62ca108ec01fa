"""Defines the keys `submit.slurm` of the cluster file, which become options of sbatch."""

import math
import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator

from launcher.contract.config import Section

# Between the end of the grace time and the limit: SIGTERM, SIGKILL, and a Slurm that signals early or late.
_LEAD_SLACK_S = 120
_LONGEST_LEAD_S = 65535
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<rest>\d+(?::\d{1,2}){0,2})", re.ASCII)
_NPUS = re.compile(r"(?:npu|ascend)[^:]*(?::[^:]+)??(?::(\d+))?", re.IGNORECASE | re.ASCII)
_OPTION = re.compile(r"--([A-Za-z][A-Za-z-]*)|-([A-Za-z])", re.ASCII)
# Options of sbatch that the script or another key sets.
_OURS = (
    *("job-name", "chdir", "output", "error", "input", "open-mode", "nodes", "ntasks", "ntasks-per-node", "time"),
    *("partition", "account", "qos", "cpus-per-task", "constraint", "array", "dependency", "kill-on-invalid-dep"),
    *("gres", "mem", "exclusive", "oversubscribe", "signal", "requeue", "no-requeue", "no-kill", "export"),
    *("export-file", "reservation", "mail-user", "mail-type", "wrap", "wait", "parsable", "test-only", "distribution"),
)
_SHORT = {
    **{"J": "job-name", "D": "chdir", "o": "output", "e": "error", "i": "input", "N": "nodes", "n": "ntasks"},
    **{"t": "time", "p": "partition", "A": "account", "q": "qos", "c": "cpus-per-task", "C": "constraint"},
    **{"a": "array", "d": "dependency", "s": "oversubscribe", "k": "no-kill", "W": "wait", "m": "distribution"},
}


def one_line(text: str) -> str:
    """Return `text`. Raises ValueError: when it has a line break or another control character."""
    if not text.isprintable():
        raise ValueError("must be one line of printable characters")
    return text


Line = Annotated[str, AfterValidator(one_line)]
Word = Annotated[Line, Field(min_length=1)]


class SlurmConfig(Section):
    """Describes a job of Slurm, for `submit.scheduler: slurm`. Keys with null leave the choice to Slurm."""

    partition: Word | None = None
    """Partition that the job is queued in (--partition)."""

    account: Word | None = None
    """Name that the hours of the job are charged to (--account)."""

    qos: Word | None = None
    """Quality of service of the job (--qos)."""

    time: Word | None = None
    """Time limit of each start, such as "08:00:00" or "1-00:00:00" (--time). A run that needs longer is requeued."""

    lead_s: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Seconds before the time limit at which Slurm asks the run to stop with a checkpoint (--signal).
    null takes `launcher.stop_grace_s` and 120 more."""

    gres: Word | None = None
    """Generic resources of each node, such as npu:8 (--gres). Ascend needs them where Slurm counts the NPUs."""

    cpus_per_task: Annotated[int, Field(ge=1)] | None = None
    """Cores of each rank (--cpus-per-task)."""

    mem: Word | None = None
    """Memory of each node, such as 64G (--mem)."""

    exclusive: bool = True
    """Take whole nodes (--exclusive). Two jobs on a node would want the same ports for metrics and HCCL."""

    constraint: Word | None = None
    """Features that the nodes must have (--constraint)."""

    reservation: Word | None = None
    """Reservation that the job runs in (--reservation)."""

    dependency: Word | None = None
    """Jobs that must end first, such as afterok:123 (--dependency). `submit --after` and `--chain` add to it."""

    mail: Word | None = None
    """Address that Slurm writes to when the job begins, fails, is requeued or ends (--mail-user)."""

    max_running: Annotated[int, Field(ge=1)] | None = None
    """Number of runs of a sweep that run at the same time. null runs as many as there is room for."""

    arguments: tuple[Word, ...] = ()
    """Further options of sbatch, each as after `#SBATCH`. Options that the launcher sets itself are refused."""

    @field_validator("time")
    @classmethod
    def _check_time(cls, time: str | None) -> str | None:
        if time is not None and not limit_s(time):
            raise ValueError("must be a time of Slurm's, such as 30 (minutes), 08:00:00 or 1-12:00:00")
        return time

    @field_validator("arguments")
    @classmethod
    def _check_arguments(cls, arguments: tuple[str, ...]) -> tuple[str, ...]:
        for each in arguments:
            match = _OPTION.match(each)
            if match is None:
                raise ValueError(f"{each!r} is no option of sbatch, such as --exclude=n7")
            # sbatch takes the beginning of a long option for the option.
            name = match[1] or _SHORT.get(match[2], "")
            if ours := next((each for each in _OURS if name and each.startswith(name)), None):
                raise ValueError(f"--{ours} is set by the launcher, by another key or by an option of submit")
        return arguments

    @field_validator("dependency")
    @classmethod
    def _check_dependency(cls, dependency: str | None) -> str | None:
        if dependency is not None and "?" in dependency:
            raise ValueError("must not join jobs by ?, since options of submit add jobs that must end too")
        return dependency


def limit_s(time: str) -> int | None:
    """Return a time limit of Slurm's in seconds, None when `time` is none or is 0.

    Its forms (sbatch(1)) are minutes, minutes:seconds, hours:minutes:seconds, and DAYS-hours[:minutes[:seconds]].
    """
    match = _TIME.fullmatch(time)
    if match is None:
        return None
    parts = [int(part) for part in match["rest"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return 86400 * int(match["days"] or 0) + 3600 * hours + 60 * minutes + seconds


def lead_s(slurm: SlurmConfig, stop_grace_s: float) -> int:
    """Return the seconds before the time limit at which Slurm signals the launcher."""
    return slurm.lead_s or math.ceil(stop_grace_s) + _LEAD_SLACK_S


def slurm_faults(slurm: SlurmConfig, stop_grace_s: float, devices_per_host: int | None) -> Iterator[str]:
    """Yield a line for each conflict with the other settings."""
    lead = lead_s(slurm, stop_grace_s)
    if lead < stop_grace_s:
        yield f"submit.slurm.lead_s: found {lead} (shorter than launcher.stop_grace_s, {stop_grace_s:g})"
    if lead > _LONGEST_LEAD_S:
        yield f"launcher.stop_grace_s: found {stop_grace_s:g} (Slurm signals at most {_LONGEST_LEAD_S} s early)"
    if slurm.time is not None and (limit := limit_s(slurm.time) or 0) < 2 * lead:
        yield (
            f"submit.slurm.time: found {slurm.time!r}, which is {limit} s (the run is asked to stop {lead} s before; "
            f"give at least {2 * lead} s, or shorten launcher.stop_grace_s)"
        )
    for each in (slurm.gres or "").split(","):
        match = _NPUS.fullmatch(each.removeprefix("gres:"))
        if match and devices_per_host is not None and int(match[1] or 1) != devices_per_host:
            yield f"submit.slurm.gres: found {each!r} (devices_per_host is {devices_per_host})"
