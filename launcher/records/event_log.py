"""Keeps RUN/events.jsonl: one JSON line for each thing the launcher saw or decided, in all attempts of a run."""

import json
import logging
import os
import time
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError

from launcher.contract.run_dir import Record

logger = logging.getLogger(__name__)

# The fields of each event:
# attempt_begun: hosts, ranks, resumed_step
# hang_found: rank, host, phase, waited_s, timeout (the key that was exceeded)
# suspect_found: rank, host, sign, last_step
# signal_sent: signal, why; to mpirun, which passes it on
# checkpoint_asked: none
# attempt_ended: exit_code, text, rank and host of the failure (null without one), checkpoint_step
# restart_decided: number, max_restarts, why, from_step, delay_s, hosts, ranks
# restart_refused: why
# run_ended: exit_code; the launcher left the run
EventName = Literal[
    "attempt_begun",
    "hang_found",
    "suspect_found",
    "signal_sent",
    "checkpoint_asked",
    "attempt_ended",
    "restart_decided",
    "restart_refused",
    "run_ended",
]
_TAIL_BYTES = 1 << 16
Plain = str | int | float | tuple[str, ...] | None


class Event(Record):
    """Is one line of the file. Its other fields depend on the event and are plain values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Plain] = Field(init=False)
    time_unix_s: Annotated[float, Field(ge=0, le=1e11)]
    event: EventName
    attempt: int


class EventLog:
    """Appends to the file. A failing disk costs lines and gives one warning, but never ends the run."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_warned = False

    def write(self, event: EventName, attempt: int, **fields: Plain) -> None:
        """Append a line with the present time (time_unix_s), the event, its attempt and `fields`."""
        line = json.dumps({"time_unix_s": time.time(), "event": event, "attempt": attempt, **fields})
        try:
            self._append(f"{line}\n".encode())
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                logger.warning("%s: cannot be written (%s)", self._path, error.strerror)

    def _append(self, line: bytes) -> None:
        with self._path.open("ab+", buffering=0) as file:
            if file.seek(0, os.SEEK_END) > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a full disk cut the line before
                    line = b"\n" + line
            file.write(line)


def read_events(path: Path) -> tuple[list[Event], list[int]]:
    """Read the events in order of writing, and the numbers of the damaged (half-written) lines.

    Raises OSError: when the file exists but cannot be read.
    """
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:  # an older version's run has no such file
        return [], []
    events, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            events.append(Event.model_validate_json(line))
        except ValidationError:
            damaged.append(number)
    return events, damaged


def last_event(path: Path) -> Event | None:
    """Read the newest event. None: there is none, or its line is damaged."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = file.read().splitlines()
        return Event.model_validate_json(lines[-1]) if lines else None
    except (OSError, ValidationError):
        return None


def describe_event(event: Event) -> str:
    """Render the event as one line: UTC time, attempt, event, and its fields as NAME=VALUE."""
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event.time_unix_s))
    fields = (event.model_extra or {}).items()
    shown = [f"{name}={_shown(value)}" for name, value in fields if value is not None]
    return "  ".join([when, f"attempt {event.attempt}", f"{event.event:<16}", *shown]).rstrip()


def _shown(value: Plain) -> str:
    return f"{value:.1f}" if isinstance(value, float) else json.dumps(value)
