"""Draws the report's charts that are no curves: held-out loss by log SNR, and the parts of a step over the training."""

import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

import numpy as np

from monitoring.records import OTHER_PART, STEP_PARTS, Loss, number, step_parts
from monitoring.report.curves import BOTTOM_PX, HEIGHT_PX, LEFT_PX, RIGHT_PX, TOP_PX, Axis, Floats, tick_label

WIDTH_PX = 560
BARS = 60
_BOTTOM_PX = HEIGHT_PX - BOTTOM_PX
_CUT = 4  # a bar of more medians is cut: a step that compiles would flatten all others


def log_snr_chart(newest: Sequence[Loss], first: Sequence[Loss] = ()) -> str:
    """Draw each range's loss with its standard error as one <svg>.

    newest, first: ranges of the last validation, and of the first, which is drawn faint; from little noise to much
    """
    shown = [(style, *_finite(losses)) for style, losses in (("before", first), ("now", newest))]
    tops = [loss + error for _, _, losses, errors in shown for loss, error in zip(losses, errors, strict=True)]
    y_axis = Axis(0.0, 1.1 * max(tops, default=0.0) or 1.0, _BOTTOM_PX, TOP_PX)
    x_axis = Axis(-0.5, max(len(newest), 1) - 0.5, LEFT_PX, WIDTH_PX - RIGHT_PX)
    parts = [*_scale(y_axis, x_axis, "loss (MSE of v)"), _under(x_axis, "log SNR, from little noise to much")]
    for place, each in enumerate(newest):
        parts.append(
            f'<text class="tick mid" x="{x_axis.px(place):.1f}" y="{_BOTTOM_PX + 17}">{escape(each.log_snr)}</text>'
        )
    for style, places, losses, errors in shown:
        for place, loss, error in zip(places, losses, errors, strict=True):
            x, y = x_axis.px(place), y_axis.px(loss)
            high, low = y_axis.px(loss + error), y_axis.px(max(loss - error, 0.0))
            parts.append(f'<line class="{style}" x1="{x:.1f}" x2="{x:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>')
            parts.append(f'<circle class="{style}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>')
    words = "; ".join(f"{loss.log_snr}: {_with_error(loss)}" for loss in newest)
    return _svg(f"Held-out loss by log SNR: {words}", parts)


def parts_chart(history: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Draw the mean seconds of each part of a step over the samples seen as one <svg>; also return a legend as HTML.

    It has one bar for a group of steps. Both are empty when no step has its duration.
    """
    names = [*STEP_PARTS, OTHER_PART]
    rows = [(number(row, "samples_seen"), step_parts(row)) for row in history]
    rows = [(place, parts) for place, parts in rows if parts and math.isfinite(place)]
    if not rows:
        return "", ""
    places = np.array([place for place, _ in rows])
    seconds = np.array([[parts.get(name, 0.0) for name in names] for _, parts in rows])
    groups = np.array_split(np.arange(len(rows)), min(BARS, len(rows)))
    means = np.array([seconds[group].mean(axis=0) for group in groups])
    totals = means.sum(axis=1)
    top = min(float(totals.max()), _CUT * float(np.median(totals))) or 1.0
    before = places[0] - (places[-1] - places[0]) / max(len(rows) - 1, 1)
    edges = [float(before), *(float(places[group[-1]]) for group in groups)]
    x_axis = Axis(edges[0], max(edges[-1], edges[0] + 1), LEFT_PX, WIDTH_PX - RIGHT_PX)
    y_axis = Axis(0.0, 1.05 * top, _BOTTOM_PX, TOP_PX)
    parts = [*_scale(y_axis, x_axis, "s/step"), *_samples(x_axis)]
    for group, (left, right) in enumerate(pairwise(edges)):
        parts += _bar(means[group], x_axis.px(left), x_axis.px(right), y_axis)
    sums = seconds.sum(axis=0)
    shares = [
        (place, f"{name.replace('_', ' ')} {100 * value / sums.sum():.1f} %")
        for place, (name, value) in enumerate(zip(names, sums, strict=True))
        if value > 0
    ]
    cut = int(np.count_nonzero(totals > y_axis.high))
    note = f"<li>{cut} of {len(groups)} bars are higher, up to {totals.max():.3g} s</li>" if cut else ""
    items = "".join(f'<li><i class="part-{place}"></i>{escape(words)}</li>' for place, words in shares)
    spoken = f"Parts of a step, share of all steps: {', '.join(words for _, words in shares)}"
    return _svg(spoken, parts), f'<ul class="legend">{items}{note}</ul>'


def _bar(means: Floats, left: float, right: float, y_axis: Axis) -> Iterator[str]:
    base = 0.0
    for place, value in enumerate(means):
        low, high = min(base, y_axis.high), min(base + float(value), y_axis.high)
        base += float(value)
        if high > low:
            y, width = y_axis.px(high), max(right - left - 0.5, 0.5)
            height = y_axis.px(low) - y
            yield f'<rect class="part-{place}" x="{left:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.2f}"/>'


def _finite(losses: Sequence[Loss]) -> tuple[list[int], list[float], list[float]]:
    """Return places, losses and standard errors of the ranges whose loss is finite. An unknown error is 0."""
    found = [(place, number(each.row, "loss"), number(each.row, "standard_error")) for place, each in enumerate(losses)]
    found = [each for each in found if math.isfinite(each[1])]
    errors = [error if math.isfinite(error) else 0.0 for _, _, error in found]
    return [place for place, _, _ in found], [loss for _, loss, _ in found], errors


def _with_error(loss: Loss) -> str:
    error = number(loss.row, "standard_error")
    return f"{number(loss.row, 'loss'):.4g}" + (f" +- {error:.2g}" if math.isfinite(error) else "")


def _scale(y_axis: Axis, x_axis: Axis, label: str) -> Iterator[str]:
    left, right = x_axis.start_px, x_axis.end_px
    for value in y_axis.ticks():
        y = y_axis.px(value)
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick end" x="{left - 8}" y="{y + 3.5:.1f}">{tick_label(value)}</text>'
    yield f'<line class="axis" x1="{left}" x2="{right}" y1="{_BOTTOM_PX}" y2="{_BOTTOM_PX}"/>'
    turned = f'transform="rotate(-90)" x="{-(TOP_PX + _BOTTOM_PX) / 2:.1f}" y="13"'
    yield f'<text class="tick mid" {turned}>{escape(label)}</text>'


def _samples(x_axis: Axis) -> Iterator[str]:
    for value in x_axis.ticks():
        if value == round(value):
            yield f'<text class="tick mid" x="{x_axis.px(value):.1f}" y="{_BOTTOM_PX + 17}">{value:,.0f}</text>'
    yield _under(x_axis, "samples seen")


def _under(x_axis: Axis, label: str) -> str:
    middle = (x_axis.start_px + x_axis.end_px) / 2
    return f'<text class="tick mid" x="{middle:.1f}" y="{HEIGHT_PX - 4}">{escape(label)}</text>'


def _svg(spoken: str, parts: Sequence[str]) -> str:
    size = f"0 0 {WIDTH_PX} {HEIGHT_PX}"
    return f'<svg viewBox="{size}" role="img" aria-label="{escape(spoken, quote=True)}">{"".join(parts)}</svg>'
