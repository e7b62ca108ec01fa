"""How timesteps are distributed: as a cumulative table, by which a uniform number in [0, 1) becomes a timestep."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vpred_train.arrays import FloatArray
from vpred_train.config.objective import ObjectiveConfig


def timestep_cdf(config: ObjectiveConfig, timesteps: int) -> FloatArray:
    """P(t < k) for k = 0 .. T, float64 (T + 1,).

    logit_normal: t = floor(T sigmoid(n)), n normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """
    if config.timestep_distribution == "uniform":
        return np.arange(timesteps + 1) / timesteps
    normal = NormalDist(config.logit_mean, config.logit_std)
    inner = [normal.cdf(math.log(k / (timesteps - k))) for k in range(1, timesteps)]
    return np.array([0.0, *inner, 1.0])


def timesteps_at(uniform: FloatArray, cdf: FloatArray) -> NDArray[np.int64]:
    """The timesteps t with cdf[t] <= uniform < cdf[t + 1]; both ends of the table are safe from rounding."""
    return np.searchsorted(cdf[1:-1], uniform, side="right").astype(np.int64)
