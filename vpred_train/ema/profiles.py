"""Computes how moving averages of the weights decay, and updates one; float32 in host memory."""

import functools
import math

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import EmaConfig, power_name
from vpred_train.distributed.flat_arrays import blocks
from vpred_train.kernels import library, update


def decays(config: EmaConfig, updates: int, since: int, now: int) -> dict[str, float]:
    """Return the decay of every average, by name, at its `updates`-th update.

    updates: counts from 1
    since, now: samples seen at the update before (0 at first) and at this one
    """
    found: dict[str, float] = {}
    for profile in config.profiles:
        if profile == "power":
            found |= {power_name(each): power_decay(gamma_of(each), since, now) for each in config.sigma_rel}
        else:
            found[profile] = BY_UPDATES[profile](config.decay, updates)
    return found


def constant_decay(decay: float, updates: int) -> float:
    """Return min(decay, (1 + n) / (10 + n)) after n updates (TensorFlow's ExponentialMovingAverage).

    The average has a short memory at first.
    """
    return min(decay, (1 + updates) / (10 + updates))


def mindone_decay(decay: float, updates: int) -> float:
    """Return decay (1 - exp(-n / 2000)) after n updates (MindONE)."""
    return -decay * math.expm1(-updates / 2000)


def power_decay(gamma: float, since: int, now: int) -> float:
    """Return (since / now)^(gamma + 1) (Karras et al. 2024, arXiv 2312.02696, section 3.1, with time in samples).

    With this decay the average is exactly the integral of t^gamma weights(t), divided by that of t^gamma.
    weights(t) are those after the first update that ends at or after t, so a skipped step shifts nothing.
    """
    return (since / now) ** (gamma + 1)


@functools.cache
def gamma_of(sigma_rel: float) -> float:
    """Return the exponent of the profile whose standard deviation is `sigma_rel` of the training time.

    It is the largest root of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)) (ibid., appendix C).
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def average_(average: FloatArray, weights: FloatArray, decay: float) -> None:
    """Update in place: average <- decay average + (1 - decay) weights, both the same range, (n,) float32."""
    if library.for_updates():
        update.average_(average, weights, 1 - decay)
        return
    for block in blocks(0, average.size):
        average[block] += np.float32(1 - decay) * (weights[block] - average[block])


BY_UPDATES = {"constant": constant_decay, "mindone": mindone_decay}
