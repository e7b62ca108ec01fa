"""Reads the histories of a run without trust: they may be damaged, of another version, or written to meanwhile.

RUN/metrics.jsonl has a row for each step, RUN/validation.jsonl one for each held-out loss, and
RUN/attempts/0001/attempt.json describes a start of the ranks.
"""

import math
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pydantic_core import from_json

from monitoring.errors import MonitorError

STEPS, VALIDATIONS, ATTEMPTS = "metrics.jsonl", "validation.jsonl", "attempts"
_SIGNS_OF_A_RUN = (STEPS, VALIDATIONS, ATTEMPTS, "plan.json", "train.yaml")
_LONGEST_LINE_BYTES = 1 << 16
_STEP_FIRST = re.compile(rb'\{"step": ?(\d{1,15})[,}]')

# Parts of a step, and the key of a row that has their seconds.
STEP_PARTS = {
    "data": "data_wait_seconds",
    "encode": "encode_seconds",
    "forward_backward": "forward_backward_seconds",
    "collective": "collective_seconds",
    "update": "update_seconds",
    "graph": "graph_seconds",
}
OTHER_PART = "other"  # what the row's parts leave of the step: in a history of an older version, most of it

Row = dict[str, Any]


def require_run(folder: Path) -> Path:
    """Return `folder`. Raises MonitorError: when it is no run directory."""
    if not folder.is_dir():
        raise MonitorError(f"{folder}: found no such folder; RUN is the directory of a run")
    if not any((folder / name).exists() for name in _SIGNS_OF_A_RUN):
        raise MonitorError(f"{folder}: not a run directory (it has none of {', '.join(_SIGNS_OF_A_RUN)})")
    return folder


def number(row: Mapping[str, Any], key: str) -> float:
    """Return a number of a row as float64. NaN: it was not finite, or the row has no such number."""
    value = row.get(key)
    if type(value) is float:  # the usual case, and the quickest test for it
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def step_parts(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the seconds of each part of a step; they add up to its `step_seconds` where that is known."""
    parts = ((part, number(row, key)) for part, key in STEP_PARTS.items())
    known = {part: seconds for part, seconds in parts if 0 <= seconds < math.inf}
    rest = number(row, "step_seconds") - sum(known.values())
    return known | ({OTHER_PART: rest} if rest > 0 and math.isfinite(rest) else {})


class Rows:
    """Iterates over the rows of a history that hold; each has an integer `step`.

    A later attempt's rows replace those of the same and later steps that an earlier one left. Rows that are written
    while this reads, and a line without an end, are left out. Memory does not grow with the file.

    damaged: number of the first line that is no row, and how many there are; known after the iteration
    """

    def __init__(self, path: Path, *, rows_share_steps: bool = False) -> None:
        self.path, self._share = path, rows_share_steps
        self.first_damaged, self.damaged = 0, 0

    def __iter__(self) -> Iterator[Row]:
        self.first_damaged, self.damaged = 0, 0
        try:
            file = self.path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return
        with file:
            # A resume replaces the file. This one stays open over both passes, and its size is that of the first.
            end = os.fstat(file.fileno()).st_size
            cuts = self._cuts(file, end)
            passed = 0
            for line_number, line in _lines(file, end):
                row = _parsed(line)
                if row is None:
                    self.first_damaged = self.first_damaged or line_number
                    self.damaged += 1
                    continue
                while passed < len(cuts) and cuts[passed][0] <= line_number:
                    passed += 1
                if passed == len(cuts) or row["step"] < cuts[passed][1]:
                    yield row

    def _cuts(self, file: BinaryIO, end: int) -> list[tuple[int, int]]:
        """Return (line, step) of each row with which an attempt continues at an earlier step, both ascending."""
        cuts: list[tuple[int, int]] = []
        last = -1
        for line_number, line in _lines(file, end):
            match = _STEP_FIRST.match(line)
            row = None if match else _parsed(line)
            if not match and row is None:
                continue
            step = int(match[1]) if match else row["step"] if row else 0
            if step < last or (step == last and not self._share):
                while cuts and cuts[-1][1] >= step:
                    cuts.pop()
                cuts.append((line_number, step))
            last = step
        return cuts


def with_rates(rows: Rows) -> Iterator[Row]:
    """Yield each step with `images_per_second` of all ranks, by the samples seen since the step before."""
    step, seen = 0, 0.0
    for row in rows:
        samples, seconds, steps = number(row, "samples_seen"), number(row, "step_seconds"), row["step"] - step
        rate = (samples - seen) / steps / seconds if steps > 0 and seconds > 0 else math.nan
        step, seen = row["step"], samples
        row["images_per_second"] = rate
        yield row


@dataclass(frozen=True)
class Loss:
    """Is one held-out loss of a validation.

    name: "all" over all timesteps, else the number of the range, from little noise to much
    log_snr: the range, such as "3.2..1.0"; of timesteps where a history does not have it
    """

    name: str
    log_snr: str
    row: Row


@dataclass(frozen=True)
class Validation:
    """Is one validation of one kind of weights; `losses` has the loss over all timesteps first."""

    step: int
    samples_seen: float
    weights: str
    losses: tuple[Loss, ...]


def validations(rows: Rows) -> Iterator[Validation]:
    """Yield the validations of a history in their order."""
    held: dict[tuple[str, float, float], Row] = {}
    step = None
    for row in rows:
        if row["step"] != step:
            yield from _grouped(held)
            held, step = {}, row["step"]
        held[str(row.get("weights")), number(row, "first_timestep"), number(row, "last_timestep")] = row
    yield from _grouped(held)


def _grouped(held: Mapping[tuple[str, float, float], Row]) -> Iterator[Validation]:
    for weights in dict.fromkeys(key[0] for key in held):
        rows = sorted(
            (row for key, row in held.items() if key[0] == weights),
            key=lambda row: (number(row, "first_timestep"), -number(row, "last_timestep")),
        )
        whole = max(rows, key=lambda row: number(row, "last_timestep") - number(row, "first_timestep"))
        bins = [row for row in rows if row is not whole]
        losses = [Loss("all", _range(whole), whole), *(Loss(str(n), _range(row), row) for n, row in enumerate(bins))]
        yield Validation(whole["step"], number(whole, "samples_seen"), weights, tuple(losses))


def _range(row: Row) -> str:
    high, low = number(row, "log_snr_high"), number(row, "log_snr_low")
    if math.isfinite(high):
        # At zero terminal SNR the low end is -inf, which JSON cannot hold.
        return f"{high:.1f}..{low:.1f}" if math.isfinite(low) else f"{high:.1f}..-inf"
    return f"timesteps {number(row, 'first_timestep'):.0f}-{number(row, 'last_timestep'):.0f}"


def read_validations(path: Path) -> list[Validation]:
    """Return all validations of a history."""
    return list(validations(Rows(path, rows_share_steps=True)))


def read_attempts(run: Path) -> list[Row]:
    """Return the records of a run's attempts in their order, without those that cannot be read."""
    found = []
    for path in sorted((run / ATTEMPTS).glob("[0-9]*/attempt.json")):
        try:
            record = from_json(path.read_bytes())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("attempt"), int):
            found.append(record)
    return found


def _lines(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the complete lines of the first `end` bytes, with their numbers from 1. A long one comes cut."""
    file.seek(0)
    place, line_number = 0, 0
    while place < end:
        line_number += 1
        line = file.readline(_LONGEST_LINE_BYTES)
        place += len(line)
        rest = line
        while rest and not rest.endswith(b"\n"):
            rest = file.readline(_LONGEST_LINE_BYTES)
            place += len(rest)
        if not rest or place > end:
            return
        yield line_number, line


def _parsed(line: bytes) -> Row | None:
    try:
        row = from_json(line)
    except ValueError:
        return None
    holds = isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool)
    return row if holds else None
