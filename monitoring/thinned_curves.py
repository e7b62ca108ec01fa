"""Computes the curves of a run, thinned for programs that draw them."""

import math
from typing import Any

from monitoring.records import Rows, Validation, number, step_parts, validations, with_rates
from monitoring.thinning import Point, Thinned

CURVES = {"loss": "loss", "grad_norm": "grad_norm", "images_per_second": "images_per_second", "step_s": "step_seconds"}


def thinned_curves(steps: Rows, held_out: Rows) -> dict[str, Any]:
    """Return the run's curves as JSON values: [samples seen, value], at most MAX_POINTS each, None for NaN.

    Held-out losses have their ranges of log SNR apart. `parts` is the sum of each part of the steps, seconds.
    """
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
