"""Prints the curves of a run as JSON, for programs that draw them."""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from monitoring.errors import MonitorError
from monitoring.records import STEPS, VALIDATIONS, Row, Rows, Validation, number, require_run, step_parts, validations
from monitoring.thinning import Point, Thinned

BAD_INPUT = 2
CURVES = {"loss": "loss", "grad_norm": "grad_norm", "images_per_second": "images_per_second", "step_s": "step_seconds"}


def with_rates(rows: Rows) -> Iterator[Row]:
    """Yield each step with `images_per_second` of all ranks, by the samples seen since the step before."""
    step, seen = 0, 0.0
    for row in rows:
        samples, seconds, steps = number(row, "samples_seen"), number(row, "step_seconds"), row["step"] - step
        rate = (samples - seen) / steps / seconds if steps > 0 and seconds > 0 else math.nan
        step, seen = row["step"], samples
        yield row | {"images_per_second": rate}


def curves(run: Path) -> dict[str, Any]:
    """Return the run's curves as JSON values: [samples seen, value], at most MAX_POINTS each, None for NaN.

    Held-out losses have their ranges of log SNR apart. `parts` is the sum of each part of the steps, seconds.
    """
    steps, held_out = Rows(run / STEPS), Rows(run / VALIDATIONS, rows_share_steps=True)
    thinned = {name: Thinned() for name in CURVES}
    parts: dict[str, float] = {}
    for row in with_rates(steps):
        place = number(row, "samples_seen")
        if not math.isfinite(place):
            continue
        for name, key in CURVES.items():
            thinned[name].add(place, number(row, key))
        for part, seconds in step_parts(row).items():
            parts[part] = parts.get(part, 0.0) + seconds
    document: dict[str, Any] = {name: [_plain(point) for point in each.points()] for name, each in thinned.items()}
    document["validation"] = _held_out(held_out)
    document["parts"] = parts
    for rows in (steps, held_out):
        warn(rows)
    return document


def _held_out(rows: Rows) -> list[dict[str, Any]]:
    """Return the validations whose losses over all timesteps a thinned curve keeps, for each kind of weights."""
    thinned: dict[str, Thinned] = {}
    for each in validations(rows):
        if math.isfinite(each.samples_seen):
            whole = number(each.losses[0].row, "loss")
            thinned.setdefault(each.weights, Thinned()).add(each.samples_seen, whole)
    kept = {(weights, place) for weights, curve in thinned.items() for place, _ in curve.points()}
    return [_validation(each) for each in validations(rows) if (each.weights, each.samples_seen) in kept]


def _validation(each: Validation) -> dict[str, Any]:
    whole, *bins = each.losses
    return {
        "samples": each.samples_seen,
        "weights": each.weights,
        "loss": _finite(number(whole.row, "loss")),
        "standard_error": _finite(number(whole.row, "standard_error")),
        "bins": [
            {
                "bin": loss.name,
                "log_snr": loss.log_snr,
                "loss": _finite(number(loss.row, "loss")),
                "standard_error": _finite(number(loss.row, "standard_error")),
            }
            for loss in bins
        ],
    }


def _plain(point: Point) -> list[float | None]:
    return [point[0], _finite(point[1])]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def warn(rows: Rows) -> None:
    """Print how many lines of a history were left out as damaged."""
    if rows.damaged:
        print(
            f"{rows.path}:{rows.first_damaged}: not a record; {rows.damaged} such line(s) are left out", file=sys.stderr
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    parser.add_argument("--to", required=True, choices=("curves",), help="curves prints JSON for programs")
    options = parser.parse_args(argv)
    try:
        document = curves(require_run(options.run))
    except (MonitorError, OSError) as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    print(json.dumps(document, allow_nan=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
