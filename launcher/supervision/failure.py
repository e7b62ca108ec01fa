"""Says why an attempt failed: which rank first, where, how it ended, and what its log and its kernel report."""

import re
from itertools import takewhile
from pathlib import Path
from typing import Literal

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import Record
from launcher.supervision.hccl_codes import HCCL_CODES, find_code

_TAIL_BYTES = 1 << 18
_TRACEBACK = "Traceback (most recent call last):"
_TRACEBACK_LINES = 60
_OUR_LINE = re.compile(r"\d{4}-\d\d-\d\dT\S+Z rank \d+ ")

FailureKind = Literal["exit", "signal", "out_of_memory", "hang", "lost", "incomplete"]


class Failure(Record):
    """Records the first failure of an attempt.

    kind: exit: the trainer ended by itself; signal: a signal ended it; out_of_memory: the kernel killed it; hang: no
    progress; lost: it left no outcome (its host or mpirun died); incomplete: no rank failed, but the run is not done
    returncode: a negative value is minus the signal
    traceback: the last in the log of `rank`; for a hang, the stack of its main thread; most recent call last
    """

    kind: FailureKind
    rank: int
    host: str
    ended: str
    returncode: int | None = None
    last_step: int
    cause: str = ""
    hint: str = ""
    hccl_code: str | None = None
    traceback: tuple[str, ...] = ()
    log: Path

    def __str__(self) -> str:
        """Render the failure in five lines."""
        lines = (
            f"rank {self.rank} on host {self.host} {self.ended} after step {self.last_step}",
            f"cause:  {self.cause or 'not known'}",
            f"where:  {self._where()}",
            f"remedy: {self.hint or ('follow the cause' if self._is_users else 'read the log')}",
            f"log:    {self.log} (logs of all ranks beside it; this text in failure.json)",
        )
        return "\n".join(lines)

    def _where(self) -> str:
        places = [line.strip() for line in self.traceback if line.startswith("  File ")]
        if self._is_users:
            return "the input, not the code"
        return places[-1] if places else "its log does not say"

    @property
    def _is_users(self) -> bool:
        return self.returncode == ExitCode.BAD_CONFIG


def read_log(failure: Failure) -> Failure:
    """Return the failure with the cause, hint and traceback that its rank's log gives."""
    text = tail(failure.log)
    lines = text.splitlines()
    code = find_code(text)
    traceback = last_stack(lines) if failure.kind == "hang" else last_traceback(lines)
    words = next((line.strip() for line in reversed(lines) if line.strip()), "the log is empty")
    said = traceback[-1] if traceback and failure.kind != "hang" else words
    found = {"hccl_code": code, "traceback": traceback, "cause": failure.cause or said}
    if code is not None:
        found["cause"] = f"HCCL {code}, {HCCL_CODES[code].meaning}: {said}"
        found["hint"] = HCCL_CODES[code].hint
    return failure.model_copy(update=found)


def blames_peer(log: Path) -> bool:
    """Return whether HCCL says in this log that another rank is at fault."""
    code = find_code(tail(log))
    return code is not None and HCCL_CODES[code].blames_peer


def tail(log: Path) -> str:
    """Read the end of a log. It is empty when there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""


def last_stack(lines: list[str]) -> tuple[str, ...]:
    """Return the main thread's last stack from faulthandler, reversed so that the most recent call is last."""
    starts = [number for number, line in enumerate(lines) if line.startswith("Current thread ")]
    calls = takewhile(lambda line: line.startswith("  File "), lines[starts[-1] + 1 :] if starts else ())
    return tuple(reversed(list(calls)))


def last_traceback(lines: list[str]) -> tuple[str, ...]:
    """Return the last Python traceback among `lines`, up to the line that names the exception."""
    starts = [number for number, line in enumerate(lines) if line.endswith(_TRACEBACK)]
    if not starts:
        return ()
    found = [_TRACEBACK]
    for line in lines[starts[-1] + 1 :]:
        if _OUR_LINE.match(line):
            break
        found.append(line)
        if line and not line.startswith(" "):
            break
    return tuple(found[:1] + found[1:][-_TRACEBACK_LINES:])
