"""Defines the result of an evaluation: its schema, its table, and the requirements that a user may set."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from launcher.contract.config import ConfigError

BALLS_FROM = 1000  # images; fewer give precision, recall and density no meaning
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
REQUIREMENT = re.compile(r"\s*([A-Za-z][A-Za-z0-9_]*)\s*(<=|>=|<|>)\s*(\S+)\s*")


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"{value} is not finite")
    return value


Finite = Annotated[float, AfterValidator(_finite)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Metric(_Record):
    """One number with what a reader needs to judge it."""

    value: Finite
    standard_error: Annotated[Finite, Field(ge=0)] | None
    """Standard error of the value; null where no estimate exists."""
    n: Annotated[int, Field(ge=1)]
    """Number of independent generated samples: images, or prompts where several images share one."""
    method: Annotated[str, Field(min_length=1)]
    """The estimator, with its parameters."""


class Weights(_Record):
    """A file of weights."""

    name: str
    digest: Annotated[str, Field(pattern="^(xxh3|sha256):[0-9a-f]+$")]


class Result(_Record):
    """The contents of result.json."""

    schema_version: Literal[1] = 1
    protocol: str | None = None
    """Name of the protocol whose settings the evaluation used; null where the user chose them."""
    recipes: dict[str, str]
    """Recipe of each network's input, by network."""
    weights: dict[str, Weights]
    """Files of weights: of the evaluated model and of each network."""
    sampler: dict[str, str | int | float | bool | None]
    """Settings of the sampler; empty where the images existed before."""
    versions: dict[str, str]
    """Versions of the packages that had a part in the numbers."""
    metrics: dict[str, Metric]
    notes: tuple[str, ...] = ()
    """Sentences that a reader of the numbers must know."""

    def to_json(self) -> str:
        """Return the text of result.json, with a line feed at the end. Equal results have equal bytes."""
        return self.model_dump_json(indent=2) + "\n"


@dataclass(frozen=True)
class Requirement:
    """A bound that a metric has to keep."""

    metric: str
    comparison: str
    bound: float

    def fault(self, metrics: dict[str, Metric]) -> str | None:
        """Return one line when the metric breaks the bound, else None. Raises ConfigError for an unknown metric."""
        if self.metric not in metrics:
            raise ConfigError(f"--require {self}: no metric {self.metric}; the result has {', '.join(sorted(metrics))}")
        value = metrics[self.metric].value
        if COMPARISONS[self.comparison](value, self.bound):
            return None
        return f"required {self}, but {self.metric} is {value:.6g}"

    def __str__(self) -> str:
        """Return the requirement as a user writes it."""
        return f"{self.metric}{self.comparison}{self.bound:g}"


def parse_requirement(text: str) -> Requirement:
    """Return the requirement of a text such as "kid<=0.02". Raises ConfigError when it is none."""
    match = REQUIREMENT.fullmatch(text)
    if not match:
        raise ConfigError(
            f"--require {text!r} is no requirement; write METRIC<=NUMBER, with one of {' '.join(COMPARISONS)}"
        )
    metric, comparison, number = match.groups()
    try:
        bound = _finite(float(number))
    except ValueError:
        raise ConfigError(f"--require {text!r}: {number!r} is not a finite number") from None
    return Requirement(metric, comparison, bound)


def small_set_notes(n: int, m: int, width: int) -> list[str]:
    """Return the notes on sets of n generated and m real images with features of `width` numbers.

    Raises ConfigError: for sets below 2 images, which have no covariance.
    """
    fewest = min(n, m)
    if fewest < 2:
        raise ConfigError(f"{n} generated and {m} real image(s); at least 2 of each are needed")
    notes = []
    if fewest <= width:
        notes.append(
            f"FID of {fewest} images is mostly the floor that any {fewest} images have; compare it with fid_floor, "
            "and models by kid"
        )
    if fewest < BALLS_FROM:
        notes.append(f"precision, recall and density need about {BALLS_FROM} images; {fewest} give coverage alone")
    return notes


def refuse_extrapolation(n: int, width: int) -> None:
    """Raise ConfigError when n images are too few to extrapolate FID to infinitely many, below 2 * width."""
    if n < 2 * width:
        raise ConfigError(f"FID is not extrapolated from {n} images; at least {2 * width} are needed")


def table(metrics: dict[str, Metric], notes: Sequence[str] = ()) -> str:
    """Return a table of text: one line for each metric, then the notes."""
    rows = [("metric", "value", "SE", "n", "method")]
    for name, metric in metrics.items():
        error = "-" if metric.standard_error is None else f"{metric.standard_error:.2g}"
        rows.append((name, _digits(metric), error, str(metric.n), metric.method))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = [
        "  ".join((name.ljust(widths[0]), value.rjust(widths[1]), error.rjust(widths[2]), n.rjust(widths[3]), method))
        for name, value, error, n, method in rows
    ]
    return "\n".join([*lines, *(f"note: {note}" for note in notes)])


def _digits(metric: Metric) -> str:
    """Return the value with the decimals of its standard error's second digit."""
    error = metric.standard_error
    if not error:
        return f"{metric.value:.6g}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{metric.value:.{decimals}f}"
