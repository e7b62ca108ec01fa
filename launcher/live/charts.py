"""Draws small charts as inline SVG, in sizes that fit a phone. Colours come from the page's style sheet."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

_WIDTH, _HEIGHT = 420, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 12, 34
_TICKS = 4
_BAR_HEIGHT = 28
_MOST = 1e100  # axes are made of products, which must stay finite

Points = Sequence[tuple[float, float | None]]


@dataclass(frozen=True)
class _Axis:
    """Maps values to pixels."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def px(self, value: float) -> float:
        low, high, value = (math.log10(each) if self.log else each for each in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        return _log_ticks(self.low, self.high) if self.log else _linear_ticks(self.low, self.high)


def line_chart(
    title: str, points: Points, unit: str = "", *, log: bool = False, smooth: bool = False, style: str = "blue"
) -> str:
    """Draw one value over samples seen. Values that are not finite, or on a log axis not positive, leave gaps.

    smooth: draw the values faint, and their running mean
    """
    shown = [(x, y if _is_drawn(y, log) else None) for x, y in points]
    values = [y for _, y in shown if y is not None]
    if not values:
        return _figure(title, unit, '<p class="none">no values yet</p>')
    x_axis = _x_axis([x for x, _ in shown])
    y_axis = _Axis(*_value_range(values, log), _HEIGHT - _BOTTOM, _TOP, log)
    lines = []
    for is_gap, part in groupby(shown, lambda point: point[1] is None):
        if not is_gap:
            px = [f"{x_axis.px(x):.1f},{y_axis.px(y):.1f}" for x, y in part if y is not None]
            lines.append(f'<polyline class="{style}{" raw" if smooth else ""}" points="{" ".join(px)}"/>')
    if smooth:
        means = running_mean([(x, y) for x, y in shown if y is not None])
        px = [f"{x_axis.px(x):.1f},{y_axis.px(y):.1f}" for x, y in means]
        lines.append(f'<polyline class="{style}" points="{" ".join(px)}"/>')
    last_x, last = next((x, y) for x, y in reversed(shown) if y is not None)
    dot = f'<circle class="{style}" cx="{x_axis.px(last_x):.1f}" cy="{y_axis.px(last):.1f}" r="3.5"/>'
    gaps = len(shown) - len(values)
    lost = f", {gaps} of {len(shown)} not finite" if gaps else ""
    spoken = f"{title}: from {short(values[0])} to {short(values[-1])}{unit and ' ' + unit}{lost}"
    drawn = _svg(spoken, [*_frame(x_axis, y_axis, "samples seen"), *lines, dot])
    return _figure(title, f"{short(last)} {unit}{lost}".strip(), drawn)


def running_mean(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the means of windows of a 25th of the points around each, narrower towards both ends."""
    half = len(points) // 50
    values = [y for _, y in points]
    means = []
    for number, (x, _) in enumerate(points):
        reach = min(half, number, len(points) - 1 - number)
        means.append((x, math.fsum(values[number - reach : number + reach + 1]) / (2 * reach + 1)))
    return means


@dataclass(frozen=True)
class Bar:
    """Is a value with its standard error, above a label."""

    label: str
    value: float
    error: float


def error_chart(title: str, bars: Sequence[Bar], x_label: str) -> str:
    """Draw values with one standard error up and down, from left to right."""
    if not bars:
        return _figure(title, "", '<p class="none">no validation yet</p>')
    tops = [bar.value + bar.error for bar in bars]
    y_axis = _Axis(0.0, max(*tops, 0.0) * 1.08 or 1.0, _HEIGHT - _BOTTOM, _TOP)
    x_axis = _Axis(-0.5, len(bars) - 0.5, _LEFT, _WIDTH - _RIGHT)
    width = min(44.0, 0.6 * (_WIDTH - _LEFT - _RIGHT) / len(bars))
    parts = _frame(None, y_axis, x_label)
    for number, bar in enumerate(bars):
        x, low, high = x_axis.px(number), *(y_axis.px(max(0.0, bar.value + sign * bar.error)) for sign in (-1, 1))
        y = y_axis.px(max(0.0, bar.value))
        parts += [
            f'<rect class="blue" x="{x - width / 2:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{_HEIGHT - _BOTTOM - y:.1f}"/>',
            f'<path class="error" d="M{x:.1f} {low:.1f}V{high:.1f}m-5 0h10M{x - 5:.1f} {low:.1f}h10"/>',
            f'<text class="mid bin" x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 14}">{escape(bar.label)}</text>',
        ]
    said = "; ".join(f"{bar.label}: {short(bar.value)} ± {short(bar.error)}" for bar in bars)
    return _figure(title, "mean ± one standard error", _svg(f"{title}. {said}", parts))


def stacked_bar(parts: Sequence[tuple[str, float]], total: float, spoken: str) -> str:
    """Draw shares of `total` as one bar. Its colours are those of the classes part-0, part-1 ..."""
    x, drawn = 0.0, []
    for number, (name, value) in enumerate(parts):
        width = 1000 * value / total
        drawn.append(
            f'<rect class="part-{number}" x="{x:.1f}" width="{width:.1f}" height="{_BAR_HEIGHT}">'
            f"<title>{escape(name)}</title></rect>"
        )
        x += width
    label = escape(spoken, quote=True)
    return (
        f'<svg class="bar" viewBox="0 0 1000 {_BAR_HEIGHT}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{''.join(drawn)}</svg>"
    )


def short(value: float) -> str:
    """Format a number with three digits."""
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.3g}"


def _is_drawn(value: float | None, log: bool) -> bool:
    return value is not None and abs(value) < _MOST and (value > 1 / _MOST or not log)  # NaN compares false


def _x_axis(places: Sequence[float]) -> _Axis:
    low, high = min(places), max(places)
    return _Axis(low, high if high > low else low + 1, _LEFT, _WIDTH - _RIGHT)


def _value_range(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min(values), max(values)
    if log:
        margin = max((high / low) ** 0.06, math.sqrt(max(1.0, 3 * low / high)))
        return low / margin, high * margin
    low, high = min(low, 0.0), max(high, 0.0)
    return (low, high + 0.06 * (high - low)) if high > low else (0.0, 1.0)


def _linear_ticks(low: float, high: float) -> list[float]:
    power = 10.0 ** math.floor(math.log10((high - low) / _TICKS))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= (high - low) / _TICKS)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1,)):
        ticks = [factor * 10.0**decade for decade in decades for factor in factors]
        inside = [tick for tick in ticks if low <= tick <= high]
        if len(inside) <= _TICKS + 2:
            return inside
    return inside[:: math.ceil(len(inside) / _TICKS)]


def _frame(x_axis: _Axis | None, y_axis: _Axis, x_label: str) -> list[str]:
    bottom, right = _HEIGHT - _BOTTOM, _WIDTH - _RIGHT
    parts = []
    for value in y_axis.ticks():
        y = y_axis.px(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="end" x="{_LEFT - 7}" y="{y + 4:.1f}">{short(value)}</text>')
    if x_axis is not None:
        for value in x_axis.ticks():
            parts.append(f'<text class="mid" x="{x_axis.px(value):.1f}" y="{bottom + 15}">{short(value)}</text>')
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{right}" y1="{bottom}" y2="{bottom}"/>')
    parts.append(f'<text class="mid" x="{(_LEFT + right) / 2}" y="{_HEIGHT - 4}">{escape(x_label)}</text>')
    return parts


def _svg(spoken: str, parts: Sequence[str]) -> str:
    label = escape(spoken, quote=True)
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}</svg>'


def _figure(title: str, note: str, content: str) -> str:
    return f"<figure><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>{content}</figure>"
