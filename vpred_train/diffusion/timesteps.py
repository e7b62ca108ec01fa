"""Defines the distribution of timesteps by a cumulative table that maps a uniform number in [0, 1) to a timestep."""

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vpred_train.arrays import FloatArray
from vpred_train.config.objective import ObjectiveConfig


def timestep_cdf(config: ObjectiveConfig, timesteps: int) -> FloatArray:
    """Return P(t < k) for k = 0 .. T, (T + 1,) float64.

    logit_normal: t = floor(T sigmoid(n)), n normal (Esser et al. 2024, arXiv 2403.03206, section 3.1).
    """
    if config.timestep_distribution == "uniform":
        return np.arange(timesteps + 1) / timesteps
    normal = NormalDist(config.logit_mean, config.logit_std)
    inner = [normal.cdf(math.log(k / (timesteps - k))) for k in range(1, timesteps)]
    return np.array([0.0, *inner, 1.0])


def timesteps_at(uniform: FloatArray, cdf: FloatArray) -> NDArray[np.int64]:
    """Return the timesteps t with cdf[t] <= uniform < cdf[t + 1].

    Rounding at both ends of the table does no harm, because the search leaves them out.
    """
    return np.searchsorted(cdf[1:-1], uniform, side="right").astype(np.int64)
