"""Computes squared maximum mean discrepancies between two sets of features, with standard errors (Gretton et al. 2012).

KID: the cubic kernel (x^T y / d + 1)^3 on Inception features (Binkowski et al. 2018, section 4), over all pairs instead
of random subsets. CMMD: a Gaussian kernel on normalised CLIP embeddings (Jayasumana et al. 2024, section 4).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from vpred_train.evaluation.arrays import Features, Float64, checked_pair, normalised

BLOCK = 2048  # rows of x and of y in one block of kernel values: 32 MB
CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0  # distance.py of google-research/cmmd: _SIGMA and _SCALE
Kernel = Callable[[Float64, Float64], Float64]


def cubic_kernel(x: Float64, y: Float64) -> Float64:
    """Return KID's kernel (n, m) of rows (n, d) and (m, d)."""
    values: Float64 = x @ y.T
    values /= x.shape[1]
    values += 1
    squares = values * values
    return np.multiply(squares, values, out=squares)


def gaussian_kernel(x: Float64, y: Float64) -> Float64:
    """Return exp(-|x - y|^2 / (2 CMMD_SIGMA^2)), (n, m)."""
    squares = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * (x @ y.T)
    return np.exp(squares / (-2 * CMMD_SIGMA**2))


@dataclass(frozen=True)
class KernelSums:
    """Holds the sums of kernel values that estimates and their jackknife need.

    xx (n,), yy (m,): sum of each row within its set, without the diagonal. xy (n,), yx (m,): sum of each row with the
    other set. diagonal_x, diagonal_y: sums of the diagonals.
    """

    xx: Float64
    yy: Float64
    xy: Float64
    yx: Float64
    diagonal_x: float
    diagonal_y: float

    @property
    def unbiased(self) -> float:
        """Return the U-statistic. It has no bias, so that it is negative now and then."""
        n, m = len(self.xx), len(self.yy)
        within = self.xx.sum() / (n * (n - 1)) + self.yy.sum() / (m * (m - 1))
        return float(within - 2 * self.xy.sum() / (n * m))

    @property
    def biased(self) -> float:
        """Return the V-statistic, with the diagonals. It exceeds the truth by about the spread over n and over m."""
        n, m = len(self.xx), len(self.yy)
        x, y = self.xx.sum() + self.diagonal_x, self.yy.sum() + self.diagonal_y
        return float(x / n**2 + y / m**2 - 2 * self.xy.sum() / (n * m))

    @property
    def replicates(self) -> tuple[Float64, Float64]:
        """Return the U-statistic without row i of x (n,), and without row j of y (m,)."""
        n, m = len(self.xx), len(self.yy)
        x, y, cross = self.xx.sum(), self.yy.sum(), self.xy.sum()
        without_x = (x - 2 * self.xx) / ((n - 1) * (n - 2)) + y / (m * (m - 1))
        without_y = x / (n * (n - 1)) + (y - 2 * self.yy) / ((m - 1) * (m - 2))
        return without_x - 2 * (cross - self.xy) / ((n - 1) * m), without_y - 2 * (cross - self.yx) / (n * (m - 1))

    @property
    def standard_error(self) -> float:
        """Return the two-sample jackknife's standard error of the U-statistic (Arvesen 1969)."""
        parts = [(len(each) - 1) / len(each) * ((each - each.mean()) ** 2).sum() for each in self.replicates]
        return float(np.sqrt(sum(parts)))


def kernel_sums(x: Features, y: Features, kernel: Kernel) -> KernelSums:
    """Return the sums over features (n, d) and (m, d), n, m >= 3, in blocks of fixed size and order.

    Raises ConfigError: for fewer than 3 rows, values that are not finite, or two widths.
    """
    x, y = checked_pair(x, y, least=3)
    diagonal_x, xx = _within(x, kernel)
    diagonal_y, yy = _within(y, kernel)
    xy, yx = np.zeros(len(x)), np.zeros(len(y))
    for rows in _blocks(len(x)):
        for columns in _blocks(len(y)):
            values = kernel(x[rows], y[columns])
            xy[rows] += values.sum(axis=1)
            yx[columns] += values.sum(axis=0)
    return KernelSums(xx, yy, xy, yx, diagonal_x, diagonal_y)


def kid(x: Features, y: Features) -> tuple[float, float]:
    """Return KID and its standard error. Papers often print KID times 1000."""
    sums = kernel_sums(x, y, cubic_kernel)
    return sums.unbiased, sums.standard_error


def cmmd(x: Features, y: Features) -> tuple[float, float, float]:
    """Return CMMD as published, unbiased CMMD and the latter's standard error, for embeddings (n, d) and (m, d).

    The rows are divided by their norms first. The published value holds the diagonals, as google-research/cmmd does.
    """
    x, y = checked_pair(x, y, least=3)
    sums = kernel_sums(normalised(x, "generated"), normalised(y, "real"), gaussian_kernel)
    return CMMD_SCALE * sums.biased, CMMD_SCALE * sums.unbiased, CMMD_SCALE * sums.standard_error


def _within(x: Float64, kernel: Kernel) -> tuple[float, Float64]:
    """Return the sum of the diagonal, and the sum of each row without it."""
    rows, diagonal = np.zeros(len(x)), 0.0
    for first in _blocks(len(x)):
        for second in _blocks(len(x)):
            if second.start < first.start:
                continue
            values = kernel(x[first], x[second])
            if first == second:
                diagonal += float(np.trace(values))
                np.fill_diagonal(values, 0)
                rows[first] += values.sum(axis=1)
            else:
                rows[first] += values.sum(axis=1)
                rows[second] += values.sum(axis=0)
    return diagonal, rows


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))
