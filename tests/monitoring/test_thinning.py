"""A thinned curve keeps its ends, its extremes and its gaps."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.thinning import MAX_POINTS, Thinned


def thin(values: list[float]) -> list[tuple[float, float]]:
    curve = Thinned()
    for place, value in enumerate(values):
        curve.add(float(place), value)
    return curve.points()


@given(st.lists(st.floats(), max_size=160))
def test_few_points_are_all_kept(values: list[float]) -> None:
    assert [place for place, _ in thin(values)] == list(range(len(values)))


@given(st.integers(0, 5000), st.integers(0, 2**32))
def test_many_points_keep_extremes_ends_and_order(count: int, seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311
    values = [math.nan if chance.random() < 0.05 else chance.gauss(0, 1) for _ in range(count)]
    points = thin(values)
    places = [int(place) for place, _ in points]
    assert places == sorted(set(places))
    assert len(points) <= MAX_POINTS
    assert all(
        value == values[place] or math.isnan(values[place]) for place, (_, value) in zip(places, points, strict=True)
    )
    if count:
        assert (places[0], places[-1]) == (0, count - 1)
    finite = [value for value in values if math.isfinite(value)]
    kept = [value for _, value in points if math.isfinite(value)]
    if finite:
        assert (min(kept), max(kept)) == (min(finite), max(finite))
    assert len(finite) == len(values) or len(kept) < len(points)


@pytest.mark.parametrize("spike", [0, 1, 4999, 77_777, 99_999])
def test_one_spike_and_one_gap_survive(spike: int) -> None:
    values = [1.0] * 100_000
    values[spike], values[50_000] = 7.8, math.nan
    points = dict(thin(values))
    assert points[spike] == 7.8
    assert math.isnan(points[50_000])
