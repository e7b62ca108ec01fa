"""Computes the Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017, equation 6).

FD = |mu1 - mu2|^2 + Tr S1 + Tr S2 - 2 Tr (S1 S2)^(1/2), with covariances over n - 1. With factors S1 = A^T A and
S2 = B^T B the last trace is the sum of the singular values of A B^T. It needs no root of a matrix: no complex numbers
and no added constant, and the distance of a set to itself is zero to rounding.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from vpred_train.evaluation.arrays import Features, Float64, checked_features, checked_pair

BLOCK = 4096  # rows that one matrix product adds up; fixed, so that the sums do not depend on the callers' batches
ASYMMETRY = 1e-6  # of the largest entry of a covariance; statistics in float32 stay below it
LEAVE_ONE_OUT = 500  # images; larger sets lose a group at a time
GROUPS = 50
TALL = 2  # rows per column from which singular values come from the Gram matrix


@dataclass(frozen=True)
class Moments:
    """Mean (d,) and covariance (d, d) over n - 1, both float64. n is None where a file does not say it."""

    mean: Float64
    covariance: Float64
    n: int | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError when the two do not fit, are not finite, or the covariance is not symmetric."""
        d = self.mean.size
        if self.mean.shape != (d,) or not d or self.covariance.shape != (d, d):
            raise ConfigError(
                f"mu of shape {self.mean.shape} and sigma of {self.covariance.shape}; needed (d,), (d, d)"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.covariance).all()):
            raise ConfigError("mu or sigma has a value that is not finite")
        gap = float(np.abs(self.covariance - self.covariance.T).max())
        if gap > ASYMMETRY * float(np.abs(self.covariance).max()):
            raise ConfigError(f"sigma is not symmetric: two mirrored entries differ by {gap:.3g}")

    def factor(self) -> Float64:
        """Return F (d, d) with F^T F = covariance. Raises ConfigError for a negative eigenvalue."""
        values, vectors = np.linalg.eigh((self.covariance + self.covariance.T) / 2)
        if values[0] < -ASYMMETRY * max(values[-1], 0.0):
            raise ConfigError(f"sigma has the eigenvalue {values[0]:.3g}; a covariance has none below 0")
        return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T


class MomentSums:
    """Adds up features in blocks of BLOCK rows in their order. The bits do not depend on the sizes of the batches."""

    def __init__(self, width: int) -> None:
        """width: d, the numbers of a row."""
        self.n = 0
        self._pending = np.empty((BLOCK, width))
        self._shift: Float64 | None = None  # mean of the first block: subtracting it keeps the digits of the covariance
        self._sum, self._products = np.zeros(width), np.zeros((width, width))

    def add(self, features: Features) -> None:
        """Add rows (k, d). Raises ConfigError when a value is not finite or the width differs."""
        rows = checked_features(features, "features", least=0)
        if rows.shape[1] != self._sum.size:
            raise ConfigError(f"features of width {rows.shape[1]}; those before had {self._sum.size}")
        while len(rows):
            start = self.n % BLOCK
            taken = rows[: BLOCK - start]
            self._pending[start : start + len(taken)] = taken
            self.n, rows = self.n + len(taken), rows[len(taken) :]
            if self.n % BLOCK == 0:
                self._shift, self._sum, self._products = self._with(self._pending)

    def moments(self) -> Moments:
        """Return the moments of all rows so far. Raises ConfigError for fewer than 2 rows."""
        if self.n < 2:
            raise ConfigError(f"{self.n} image(s); at least 2 are needed")
        shift, total, products = self._with(self._pending[: self.n % BLOCK])
        covariance = (products - np.outer(total, total) / self.n) / (self.n - 1)
        return Moments(shift + total / self.n, (covariance + covariance.T) / 2, self.n)

    def _with(self, rows: Float64) -> tuple[Float64, Float64, Float64]:
        if not len(rows):
            return np.zeros_like(self._sum) if self._shift is None else self._shift, self._sum, self._products
        shift = rows.mean(axis=0) if self._shift is None else self._shift
        rows = rows - shift
        return shift, self._sum + rows.sum(axis=0), self._products + rows.T @ rows


def moments(features: Features) -> Moments:
    """Return the moments of features (n, d), n >= 2."""
    values = checked_features(features, "features")
    sums = MomentSums(values.shape[1])
    sums.add(values)
    return sums.moments()


def frechet_distance(x: Features, y: Features) -> float:
    """Return FD between features (n, d) and (m, d), in squared units of the features.

    Raises ConfigError: for fewer than 2 rows, values that are not finite, or two widths.
    """
    x, y = checked_pair(x, y)
    return _distance(x.mean(axis=0) - y.mean(axis=0), _factor(x), _factor(y))


def frechet_distance_of_moments(x: Moments, y: Moments) -> float:
    """Return FD between two Gaussians. Raises ConfigError of two widths or of a covariance that is none."""
    if x.mean.size != y.mean.size:
        raise ConfigError(f"statistics of widths {x.mean.size} and {y.mean.size}; one network must make both")
    return _distance(x.mean - y.mean, x.factor(), y.factor())


def frechet_standard_error(x: Features, y: Features) -> float:
    """Return the jackknife's standard error of FD over both sets, (n, d) and (m, d) with n, m >= 3.

    Sets up to LEAVE_ONE_OUT lose one image at a time, larger ones one of GROUPS interleaved groups (Efron and
    Tibshirani 1993, equation 11.5; Shao and Wu 1989). Resampling with replacement would add a bias as large as FD.
    """
    x, y = checked_pair(x, y, least=3)
    return float(np.sqrt(_variance(frechet_replicates(x, y)) + _variance(frechet_replicates(y, x))))


def frechet_replicates(x: Features, y: Features) -> Float64:
    """Return FD (groups,) with each group of x left out in turn, y being whole."""
    x, y = checked_pair(x, y, least=3)
    n, factor = len(x), _factor(y)
    mean = x.mean(axis=0)
    centred, shift = x - mean, mean - y.mean(axis=0)
    squares, trace = (centred**2).sum(axis=1), float((factor**2).sum())
    cross = centred @ factor.T  # A B^T of the whole sets, but for 1 / sqrt(n - 1)
    gram = cross.T @ cross if n > TALL * cross.shape[1] else None
    found = []
    for left_out in jackknife_groups(n):
        kept = n - len(left_out)
        moved = -centred[left_out].sum(axis=0) / kept  # of the mean
        spread = squares.sum() - squares[left_out].sum() - kept * (moved @ moved)
        root = _nuclear_without(cross, gram, left_out)
        gap = shift + moved
        found.append(gap @ gap + spread / (kept - 1) + trace - 2 * root / np.sqrt(kept - 1))
    return np.array(found)


def _nuclear_without(cross: Float64, gram: Float64 | None, left_out: NDArray[np.intp]) -> float:
    """Return the sum of singular values of the rows that stay, centred; gram is cross^T cross, or None."""
    kept = len(cross) - len(left_out)
    gone = cross[left_out]
    moved = -gone.sum(axis=0) / kept
    if gram is None:
        return float(np.linalg.svd(np.delete(cross, left_out, axis=0) - moved, compute_uv=False).sum())
    values = np.linalg.eigvalsh(gram - gone.T @ gone - kept * np.outer(moved, moved))
    return float(np.sqrt(np.maximum(values, 0)).sum())


def jackknife_groups(n: int) -> list[NDArray[np.intp]]:
    """Return the rows of each group that the jackknife leaves out: single rows up to LEAVE_ONE_OUT."""
    count = n if n <= LEAVE_ONE_OUT else GROUPS
    return [np.arange(first, n, count) for first in range(count)]


def floor_of_halves(features: Features, seed: int) -> float:
    """Return FD between two random halves of one set (n, d), n >= 4: a perfect model's FD at n // 2 images a side.

    seed: of numpy's PCG64, whose permutation deals the rows.
    """
    values = checked_features(features, "real", least=4)
    order = np.random.default_rng(seed).permutation(len(values))
    half = len(values) // 2
    return frechet_distance(values[order[:half]], values[order[half : 2 * half]])


def _factor(values: Float64) -> Float64:
    """Return F with F^T F = covariance: the centred rows, or d rows where those are fewer."""
    n, d = values.shape
    if n > d:
        return moments(values).factor()
    return (values - values.mean(axis=0)) / np.sqrt(n - 1)


def _distance(gap: Float64, a: Float64, b: Float64) -> float:
    root = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(gap @ gap + (a**2).sum() + (b**2).sum() - 2 * root)


def _variance(replicates: Float64) -> float:
    count = len(replicates)
    return float((count - 1) / count * ((replicates - replicates.mean()) ** 2).sum())
