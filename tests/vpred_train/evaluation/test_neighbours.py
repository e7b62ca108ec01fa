"""Metrics of nearest neighbours against loops over pairs, with ties, and the check for copies."""

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from vpred_train.evaluation import neighbours
from vpred_train.evaluation.neighbours import BallMetrics, ball_metrics, memorisation, nearest


def lattice(n: int, seed: int, shift: int = 0) -> np.ndarray:
    """Points with whole coordinates: their squared distances are exact, and many are equal."""
    return np.random.default_rng(seed).integers(0, 6, size=(n, 3)).astype(float) + shift


def by_loops(x: np.ndarray, y: np.ndarray) -> BallMetrics:
    def squared(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum())

    def radius(points: np.ndarray, i: int, k: int) -> float:
        return sorted(squared(points[i], points[j]) for j in range(len(points)) if j != i)[k - 1]

    precision = np.mean([any(squared(a, y[j]) <= radius(y, j, 3) for j in range(len(y))) for a in x])
    recall = np.mean([any(squared(b, x[i]) <= radius(x, i, 3) for i in range(len(x))) for b in y])
    inside = np.array([[squared(a, y[j]) < radius(y, j, 5) for j in range(len(y))] for a in x])
    return BallMetrics(float(precision), float(recall), inside.sum() / (5 * len(x)), float(inside.any(axis=0).mean()))


@pytest.mark.parametrize(("n", "m", "shift"), [(6, 9, 0), (30, 25, 2), (20, 40, 4)])
@pytest.mark.parametrize("block", [7, 1024])
def test_metrics_equal_loops(n: int, m: int, shift: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", block)
    x, y = lattice(n, 1, shift), lattice(m, 2)
    assert ball_metrics(x, y) == by_loops(x, y)


def test_a_surface_counts_for_precision_alone() -> None:
    """Real images lie on a line, one unit apart: the 3rd neighbour of the last is 3 away, the 5th 5 away."""
    real = np.arange(6.0)[:, None]
    generated = np.concatenate([np.full((1, 1), 8.0), 100 + np.arange(6.0)[:, None]])  # 8 is 3 away from 5
    assert ball_metrics(generated, real).precision == 1 / 7
    generated[0] = 10  # 5 away: on the surface of the ball of the 5th neighbour
    assert ball_metrics(generated, real).coverage == 0
    generated[0] = 9.99
    assert ball_metrics(generated, real).coverage == 1 / 6


def test_one_distribution_is_covered_and_another_is_not() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 8)), rng.normal(size=(300, 8))
    same, far = ball_metrics(x, y), ball_metrics(x + 20, y)
    assert same.coverage > 0.9
    assert 0.8 < same.density < 1.2
    assert far == BallMetrics(0, 0, 0, 0)
    narrow = ball_metrics(0.1 * x, y)
    assert narrow.precision > 0.9
    assert narrow.recall < 0.2


def test_the_nearest_row_is_found_across_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "BLOCK", 4)
    x, y = lattice(11, 3), lattice(13, 4)
    distances = np.sqrt(((x[:, None] - y) ** 2).sum(axis=2))
    found = nearest(x, y)
    np.testing.assert_array_equal(found.index, distances.argmin(axis=1))
    np.testing.assert_array_equal(found.distance, distances.min(axis=1))


def test_copies_are_found_and_new_images_are_not() -> None:
    rng = np.random.default_rng(1)
    training, test, new = (rng.normal(size=(n, 16)) for n in (300, 200, 200))
    copied = new.copy()
    copied[[3, 50]] = training[[7, 8]] + 1e-3
    found = memorisation(copied, training, test)
    assert set(found.copies[:2]) == {3, 50}
    assert 0 < memorisation(new, training, test).generated_share < 0.12
    assert memorisation(training[:100], training, test).generated_share == 1


def test_sets_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"real: 5 image\(s\); at least 6"):
        ball_metrics(lattice(9, 1), lattice(5, 2))
    with pytest.raises(ConfigError, match=r"19 test image\(s\) give no quantile 0.05; at least 20"):
        memorisation(lattice(9, 1), lattice(5, 2), lattice(19, 3))
