"""Makes two tables of a run's histories: steps and held-out losses. Their columns are the same for all runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from monitoring.records import STEP_PARTS, Row, Rows, number, validations, with_rates

Kind = Literal["int", "float", "bool", "str"]
Columns = dict[str, Kind]

STEP_COLUMNS: Columns = {
    "step": "int",
    "samples_seen": "int",
    "unix_s": "float",
    "loss": "float",
    "grad_norm": "float",
    "learning_rate": "float",
    "loss_scale": "float",
    "finite": "bool",
    "overflow": "bool",
    "images_per_second": "float",
    "images_per_second_per_device": "float",
    "model_flops_per_second": "float",
    "mfu_ratio": "float",
    "step_seconds": "float",
    **dict.fromkeys(STEP_PARTS.values(), "float"),
}
VALIDATION_COLUMNS: Columns = {
    "step": "int",
    "samples_seen": "int",
    "unix_s": "float",
    "weights": "str",
    "bin": "str",
    "log_snr": "str",
    "log_snr_high": "float",
    "log_snr_low": "float",
    "first_timestep": "int",
    "last_timestep": "int",
    "loss": "float",
    "standard_error": "float",
    "images": "int",
}
_INT64 = range(-(1 << 63), 1 << 63)


@dataclass
class Tables:
    """Yields the rows of both tables. A value is of its column's kind, or None where a history has none.

    Iterate over `steps` first: a validation's time is that of its step.
    """

    step_rows: Rows
    validation_rows: Rows
    _unix_s: dict[int, float] = field(default_factory=dict)

    def steps(self) -> Iterator[Row]:
        """Yield the steps in their order, with `images_per_second` of all ranks."""
        self._unix_s = dict.fromkeys((row["step"] for row in self.validation_rows), math.nan)
        first = True
        for row in with_rates(self.step_rows):
            ended = number(row, "unix_s")
            if first:
                self._unix_s[0] = ended - number(row, "step_seconds")
                first = False
            if row["step"] in self._unix_s:
                self._unix_s[row["step"]] = ended
            yield _typed(row, STEP_COLUMNS)

    def held_out(self) -> Iterator[Row]:
        """Yield the held-out losses in their order. `bin` is "all" over all timesteps."""
        for each in validations(self.validation_rows):
            for loss in each.losses:
                unix_s = self._unix_s.get(each.step, math.nan)
                row = {"unix_s": unix_s} | loss.row | {"bin": loss.name, "log_snr": loss.log_snr}
                if row.get("log_snr_low", 0.0) is None:
                    row["log_snr_low"] = -math.inf  # of zero terminal SNR; JSON cannot hold it
                yield _typed(row, VALIDATION_COLUMNS)


def _typed(row: Row, columns: Columns) -> Row:
    return {name: _value(row, name, kind) for name, kind in columns.items()}


def _value(row: Row, name: str, kind: Kind) -> Any:
    if kind == "float":
        return number(row, name) if name in row else None
    value = row.get(name)
    if kind == "int":
        return value if type(value) is int and value in _INT64 else None
    return value if type(value) is {"bool": bool, "str": str}[kind] else None
