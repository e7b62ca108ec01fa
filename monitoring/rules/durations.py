"""Renders the durations of an expression, for use and, shorter, for tests."""

import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"\b(\d+)([smhd])\b")
_TOKEN = re.compile(rf"\[(?P<range>\w+)(?P<colon>:(?P<resolution>\w*))?\]|offset (?P<offset>\w+)|{_DURATION.pattern}")
_LEAST_WINDOW_S = 10  # of a test: `rate` needs some scrapes, one a second


def seconds(duration: str) -> int:
    """Return the seconds of a duration such as 5m.

    Raises ValueError: when it is none.
    """
    match = _DURATION.fullmatch(duration)
    if match is None:
        raise ValueError(f"{duration!r} is not a duration such as 5m")
    return int(match[1]) * _SECONDS[match[2]]


def expression(text: str, faster: float = 1) -> str:
    """Return PromQL for an expression of ours, in which a duration that is no range or offset stands for its seconds.

    faster: factor by which all durations are shorter than written
    """

    def rendered(match: re.Match[str]) -> str:
        if match["offset"]:
            return f"offset {shortened(match['offset'], faster)}"
        if not match["range"]:
            return f"{seconds(match[0]) / faster:g}"
        resolution = shortened(match["resolution"], faster) if match["resolution"] else ""
        return f"[{shortened(match['range'], faster, _LEAST_WINDOW_S)}{':' if match['colon'] else ''}{resolution}]"

    return _TOKEN.sub(rendered, " ".join(text.split()))


def shortened(duration: str, faster: float, least_s: int = 1) -> str:
    """Return a duration divided by `faster`, in whole seconds, at least `least_s`. A factor of 1 leaves it as it is."""
    return duration if faster == 1 else f"{max(least_s, round(seconds(duration) / faster))}s"
