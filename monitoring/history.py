"""Writes and reads metrics.jsonl: one line per step, appended when the step ends."""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from monitoring.errors import MonitorError

Value = float | int | bool | str


class History:
    """Keeps the steps of a run in one append-only file of JSON lines; every record has an integer `step`.

    JSON has no NaN, so a number that is not finite is written as null and read back as NaN.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Value]) -> None:
        """Append a record. The line is in the file when this returns, but a power cut may still lose it."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_encode(record))

    def read(self) -> list[dict[str, Any]]:
        """Return all records; none if there is no file. A torn last line is left out.

        Raises MonitorError: when any other line is damaged.
        """
        return list(self._records())

    def truncate_after(self, step: int) -> None:
        """Drop the records of later steps and a torn last line, in one atomic replacement. A resume needs this."""
        if not self.path.exists():
            return
        kept = "".join(_encode(record) for record in self._records() if record["step"] <= step)
        aside = self.path.with_name(f".{self.path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
        try:
            with aside.open("x", encoding="utf-8") as file:
                file.write(kept)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self.path)
        except BaseException:
            with contextlib.suppress(OSError):
                aside.unlink()
            raise
        _fsync_directory(self.path.parent)

    def _records(self) -> Iterator[dict[str, Any]]:
        if not self.path.exists():
            return
        *lines, _torn = self.path.read_bytes().split(b"\n")  # after the last line end: nothing, or a torn line
        for number, line in enumerate(lines, start=1):
            record = _decode(line)
            if record is None:
                # A line with a line end was written completely, so no crash caused this.
                raise MonitorError(f"{self.path}:{number}: not a step record; remove the line")
            yield record


def _encode(record: Mapping[str, Value]) -> str:
    plain = {
        key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in record.items()
    }
    return json.dumps(plain, allow_nan=False) + "\n"


def _decode(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    if not isinstance(record, dict) or not isinstance(record.get("step"), int):
        return None
    return {key: math.nan if value is None else value for key, value in record.items()}


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
