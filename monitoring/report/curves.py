"""Draws line charts as inline SVG: axes, ticks, the raw series, a smoothed one.

The page's style sheet sets the colours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

HEIGHT_PX = 260
LEFT_PX, RIGHT_PX, TOP_PX, BOTTOM_PX = 72, 58, 12, 40
TICKS_WANTED = 6
RAW_BINS = 500
SMOOTH_POINTS = 240
SMOOTH_WINDOW = 1 / 25  # fraction of the series


@dataclass(frozen=True)
class Curve:
    """Describes a chart.

    smooth: reduces a window of values to one; None draws only the series.
    """

    title: str
    note: str
    x_label: str
    y_label: str  # with its unit
    style: str  # CSS class that sets --line
    scale: Literal["linear", "log"]
    smooth: Callable[[Floats], float] | None
    width_px: int = 560


@dataclass(frozen=True)
class Axis:
    """Maps a range of values to pixels."""

    low: float
    high: float
    start_px: float
    end_px: float
    scale: Literal["linear", "log"] = "linear"

    def px(self, value: float) -> float:
        low, high, value = (math.log10(v) if self.scale == "log" else v for v in (self.low, self.high, value))
        return self.start_px + (value - low) / (high - low) * (self.end_px - self.start_px)

    def ticks(self) -> list[float]:
        return log_ticks(self.low, self.high) if self.scale == "log" else linear_ticks(self.low, self.high)


def draw(curve: Curve, places: Sequence[float], values: Sequence[float]) -> str:
    """Draw the chart as one <svg>. Values that are not finite (on a log scale also <= 0) are marked on the axis."""
    x, y = np.asarray(places, np.float64), np.asarray(values, np.float64)
    shown = np.isfinite(y) & ((y > 0) | (curve.scale == "linear"))
    x_axis = Axis(*_widened(float(x.min()), float(x.max())), LEFT_PX, curve.width_px - RIGHT_PX)
    y_axis = Axis(*_value_range(y[shown], curve.scale), HEIGHT_PX - BOTTOM_PX, TOP_PX, curve.scale)
    parts = [*_frame(curve, x_axis, y_axis), *_gaps(x[~shown], x_axis)]
    if shown.any():
        parts += _series(curve, x[shown], y[shown], x_axis, y_axis)
    label = escape(_spoken(curve, x[shown], y[shown], int((~shown).sum())), quote=True)
    size = f"0 0 {curve.width_px} {HEIGHT_PX}"
    return f'<svg class="{curve.style}" viewBox="{size}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def linear_ticks(low: float, high: float) -> list[float]:
    """Return about TICKS_WANTED multiples of 1, 2 or 5 times a power of ten within [low, high]."""
    rough = (high - low) / TICKS_WANTED
    power = 10.0 ** math.floor(math.log10(rough))
    spacing = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.ceil(low / spacing - 1e-9), math.floor(high / spacing + 1e-9)
    return [index * spacing for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2 and 5 times the powers of ten within [low, high]; only the powers when that is too many ticks."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 2, 5), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
        if len(inside) <= TICKS_WANTED + 2:
            return inside
    return inside[:: math.ceil(len(inside) / TICKS_WANTED)]


def tick_label(value: float) -> str:
    """Format a number as in 12,000 and 0.05 and 2e-05."""
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.6g}"
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e7 else f"{value:.2g}"


def smoothed(x: Floats, y: Floats, smooth: Callable[[Floats], float]) -> tuple[Floats, Floats]:
    """Apply `smooth` to centred windows, narrower towards both ends, at up to SMOOTH_POINTS places."""
    half = max(1, round(len(y) * SMOOTH_WINDOW / 2))
    centres = np.unique(np.linspace(0, len(y) - 1, min(len(y), SMOOTH_POINTS)).astype(int))
    reaches = np.minimum(half, np.minimum(centres, len(y) - 1 - centres))
    # At the very ends a symmetric window holds one value, so at least a quarter of the window is used.
    reaches = np.maximum(reaches, half // 2)
    means = [smooth(y[max(0, c - r) : c + r + 1]) for c, r in zip(centres, reaches, strict=True)]
    return x[centres], np.array(means, np.float64)


def thinned(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Keep at most 2 * RAW_BINS points: the lowest and highest value of every bin."""
    if len(y) <= 2 * RAW_BINS:
        return x, y
    keep: set[int] = set()
    for places in np.array_split(np.arange(len(y)), RAW_BINS):
        keep |= {int(places[y[places].argmin()]), int(places[y[places].argmax()])}
    chosen = np.array(sorted(keep))
    return x[chosen], y[chosen]


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _value_range(y: Floats, scale: str) -> tuple[float, float]:
    if scale == "log":
        low, high = (float(y.min()), float(y.max())) if len(y) else (0.1, 1.0)
        # Neighbouring ticks are at most a factor 2.5 apart, so a range of 3 shows one even for constant values.
        margin = max((high / low) ** 0.06, math.sqrt(3 * low / high))
        return low / margin, high * margin
    high = max(float(y.max()), 0.0) if len(y) else 1.0
    low = min(float(y.min()), 0.0) if len(y) else 0.0
    return (low, high + 0.06 * (high - low)) if high > low else (low, low + 1.0)


def _frame(curve: Curve, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    """Yield grid lines, tick labels, axes and their labels."""
    left, right, bottom, top = x_axis.start_px, x_axis.end_px, y_axis.start_px, y_axis.end_px
    for value in y_axis.ticks():
        y = y_axis.px(value)
        yield f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick end" x="{left - 8}" y="{y + 3.5:.1f}">{tick_label(value)}</text>'
    for value in x_axis.ticks():
        if value != round(value):
            continue  # there are no half samples
        x = x_axis.px(value)
        yield f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>'
        yield f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>'
        yield f'<text class="tick mid" x="{x:.1f}" y="{bottom + 17}">{value:,.0f}</text>'
    yield f'<line class="axis" x1="{left}" x2="{right}" y1="{bottom}" y2="{bottom}"/>'
    yield f'<text class="tick mid" x="{(left + right) / 2:.1f}" y="{HEIGHT_PX - 4}">{escape(curve.x_label)}</text>'
    turned = f'transform="rotate(-90)" x="{-(top + bottom) / 2:.1f}" y="13"'
    yield f'<text class="tick mid" {turned}>{escape(curve.y_label)}</text>'


def _gaps(x: Floats, x_axis: Axis) -> Iterator[str]:
    bottom = HEIGHT_PX - BOTTOM_PX
    for place in x:
        px = x_axis.px(float(place))
        yield f'<line class="gap" x1="{px:.1f}" x2="{px:.1f}" y1="{bottom}" y2="{bottom - 12}"/>'


def _series(curve: Curve, x: Floats, y: Floats, x_axis: Axis, y_axis: Axis) -> Iterator[str]:
    """Yield the raw and smoothed lines, and the last value."""
    if curve.smooth is not None and len(y) > 2:
        yield _line("raw", *thinned(x, y), x_axis, y_axis)
        x, y = smoothed(x, y, curve.smooth)
    yield _line("main", *thinned(x, y), x_axis, y_axis)
    end_x, end_y = x_axis.px(float(x[-1])), y_axis.px(float(y[-1]))
    yield f'<circle class="dot" cx="{end_x:.1f}" cy="{end_y:.1f}" r="3.5"/>'
    yield f'<text class="last" x="{end_x + 8:.1f}" y="{end_y + 4:.1f}">{float(y[-1]):.3g}</text>'


def _line(style: str, x: Floats, y: Floats, x_axis: Axis, y_axis: Axis) -> str:
    points = " ".join(f"{x_axis.px(float(a)):.1f},{y_axis.px(float(b)):.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline class="{style}" points="{points}"/>'


def _spoken(curve: Curve, x: Floats, y: Floats, missing: int) -> str:
    if not len(y):
        return f"{curve.title}: no finite value"
    lost = f", {missing} not finite" if missing else ""
    return f"{curve.title}: {y[0]:.3g} at {x[0]:,.0f}, {y[-1]:.3g} at {x[-1]:,.0f} {curve.x_label}{lost}"
