"""Thins a curve while it is read, so that its extremes survive."""

import math
from dataclasses import dataclass

Point = tuple[float, float]

MAX_POINTS = 500
_BUCKETS = (MAX_POINTS - 2) // 3  # a bucket keeps three points, and the curve its first and last


@dataclass
class _Bucket:
    """Keeps the points with the lowest and the highest value, and the first one that is not finite."""

    low: Point | None = None
    high: Point | None = None
    lost: Point | None = None
    size: int = 0

    def add(self, point: Point) -> None:
        self.size += 1
        if not math.isfinite(point[1]):
            self.lost = self.lost or point
            return
        if self.low is None or point[1] < self.low[1]:
            self.low = point
        if self.high is None or point[1] > self.high[1]:
            self.high = point

    def merge(self, later: "_Bucket") -> None:
        size = self.size + later.size
        for point in later.points():
            self.add(point)
        self.size = size

    def points(self) -> list[Point]:
        return sorted({point for point in (self.low, self.high, self.lost) if point is not None}, key=lambda p: p[0])


class Thinned:
    """Keeps at most MAX_POINTS of the points that are added in order: all as long as they are few.

    Buckets of as many points each hold the extremes. When all are full, neighbours merge and hold twice as many.
    """

    def __init__(self) -> None:
        self._buckets: list[_Bucket] = []
        self._width = 1
        self._first: Point | None = None
        self._last: Point | None = None

    def add(self, place: float, value: float) -> None:
        """Add a point after all others. `value` may be NaN."""
        point = (place, value)
        self._first, self._last = self._first or point, point
        if not self._buckets or self._buckets[-1].size == self._width:
            if len(self._buckets) == _BUCKETS:
                self._merge()
            self._buckets.append(_Bucket())
        self._buckets[-1].add(point)

    def points(self) -> list[Point]:
        """Return the points that are kept, in their order."""
        kept = {point for bucket in self._buckets for point in bucket.points()}
        return sorted(kept | {point for point in (self._first, self._last) if point is not None}, key=lambda p: p[0])

    def _merge(self) -> None:
        for first, second in zip(self._buckets[::2], self._buckets[1::2], strict=True):
            first.merge(second)
        del self._buckets[1::2]
        self._width *= 2
