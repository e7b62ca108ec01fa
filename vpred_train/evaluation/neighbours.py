"""Computes metrics of nearest neighbours: precision and recall, density and coverage, and copies of training images.

Precision and recall: Kynkaanniemi et al. 2019, equation 2. Density and coverage: Naeem et al. 2020, equations 4 and 9.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from vpred_train.evaluation.arrays import Features, Float64, checked_pair

BLOCK = 1024  # rows of distances in memory; at 30,000 columns 245 MB
PRECISION_K, COVERAGE_K = 3, 5


@dataclass(frozen=True)
class BallMetrics:
    """Shares of 0..1, but density, which may exceed 1.

    precision: generated images in the ball of some real image, whose radius is the distance to its PRECISION_K-th
    neighbour. recall: real images in the ball of some generated image.
    density: mean number of real balls (COVERAGE_K) around a generated image, over COVERAGE_K.
    coverage: real balls (COVERAGE_K) that hold a generated image.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def ball_metrics(generated: Features, real: Features) -> BallMetrics:
    """Return the metrics of features (n, d) and (m, d); both need more than COVERAGE_K rows.

    Points on a ball's surface count for precision and recall, and do not count for density and coverage, as in
    torch-fidelity and in prdc.
    """
    x, y = checked_pair(generated, real, least=COVERAGE_K + 1)
    radii_x = _radii(x, (PRECISION_K,))[PRECISION_K]
    radii_y = _radii(y, (PRECISION_K, COVERAGE_K))
    precise, recalled = np.zeros(len(x), bool), np.zeros(len(y), bool)
    covered, balls = np.zeros(len(y), bool), 0
    for rows in _blocks(len(x)):
        squares = squared_distances(x[rows], y)
        precise[rows] = (squares <= radii_y[PRECISION_K]).any(axis=1)
        recalled |= (squares <= radii_x[rows, None]).any(axis=0)
        inside = squares < radii_y[COVERAGE_K]
        balls += int(inside.sum())
        covered |= inside.any(axis=0)
    density = balls / (COVERAGE_K * len(x))
    return BallMetrics(float(precise.mean()), float(recalled.mean()), density, float(covered.mean()))


@dataclass(frozen=True)
class Nearest:
    """Nearest training image of each row: its index (n,) and its distance (n,)."""

    index: NDArray[np.intp]
    distance: Float64


def nearest(x: Features, training: Features) -> Nearest:
    """Return the nearest row of `training` (m, d) for each row of x (n, d), the first of those equally near."""
    x, y = checked_pair(x, training, least=1)
    index, squares = np.zeros(len(x), np.intp), np.zeros(len(x))
    for rows in _blocks(len(x)):
        found = squared_distances(x[rows], y)
        index[rows] = found.argmin(axis=1)
        squares[rows] = found.min(axis=1)
    return Nearest(index, np.sqrt(squares))


@dataclass(frozen=True)
class Memorisation:
    """How much nearer generated images lie to training images than test images do.

    threshold: distance that the share `alarms` of the test images falls below.
    generated_share: share of generated images below it. Without copying it is about `alarms`.
    copies: rows of the generated images below it, the nearest first.
    """

    threshold: float
    alarms: float
    generated_share: float
    copies: tuple[int, ...]


def memorisation(generated: Features, training: Features, test: Features, alarms: float = 0.05) -> Memorisation:
    """Compare distances to the nearest training image, with test images as the control.

    generated (n, d), training (m, d), test (t, d). alarms: share of test images, in 0..1.
    Raises ConfigError: when there are too few test images for that share.
    """
    if len(test) * alarms < 1:
        raise ConfigError(f"{len(test)} test image(s) give no quantile {alarms:g}; at least {int(np.ceil(1 / alarms))}")
    control = np.sort(nearest(test, training).distance)
    threshold = float(control[int(len(control) * alarms) - 1])
    found = nearest(generated, training).distance
    order = np.argsort(found, kind="stable")
    copies = tuple(int(row) for row in order if found[row] < threshold)
    return Memorisation(threshold, alarms, len(copies) / len(found), copies)


def squared_distances(x: Float64, y: Float64) -> Float64:
    """Return |x_i - y_j|^2 (n, m), never below 0."""
    squares: Float64 = -2 * (x @ y.T)
    squares += (x**2).sum(axis=1)[:, None]
    squares += (y**2).sum(axis=1)
    return np.maximum(squares, 0, out=squares)


def _radii(values: Float64, ks: tuple[int, ...]) -> dict[int, Float64]:
    """Return the squared distance of each row to its k-th neighbour, itself not counted."""
    found = {k: np.zeros(len(values)) for k in ks}
    for rows in _blocks(len(values)):
        squares = squared_distances(values[rows], values)
        squares[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = np.inf
        smallest = np.partition(squares, [k - 1 for k in ks], axis=1)
        for k in ks:
            found[k][rows] = smallest[:, k - 1]
    return found


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
