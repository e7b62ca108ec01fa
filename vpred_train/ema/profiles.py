"""How moving averages of the weights forget, and the update of one; float32 in host memory."""

import functools
import math

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import EmaConfig, power_name
from vpred_train.distributed.flat_arrays import blocks
from vpred_train.kernels import library, update


def decays(config: EmaConfig, updates: int, since: int, now: int) -> dict[str, float]:
    """Name -> decay of every average at its `updates`-th update (from 1), `since` and `now` being the samples seen at
    the update before (0 at first) and at this one."""
    found: dict[str, float] = {}
    for profile in config.profiles:
        if profile == "power":
            found |= {power_name(each): power_decay(gamma_of(each), since, now) for each in config.sigma_rel}
        else:
            found[profile] = BY_UPDATES[profile](config.decay, updates)
    return found


def constant_decay(decay: float, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n updates: short memory first (TensorFlow's ExponentialMovingAverage)."""
    return min(decay, (1 + updates) / (10 + updates))


def mindone_decay(decay: float, updates: int) -> float:
    """decay (1 - exp(-n / 2000)) after n updates (MindONE)."""
    return -decay * math.expm1(-updates / 2000)


def power_decay(gamma: float, since: int, now: int) -> float:
    """(since / now)^(gamma + 1) (Karras et al. 2024, arXiv 2312.02696, section 3.1, the time in samples).

    With it the average is exactly the integral of t^gamma weights(t), divided by that of t^gamma, where weights(t) are
    those that the update ending at or after t has left: a skipped step shifts nothing.
    """
    return (since / now) ** (gamma + 1)


@functools.cache
def gamma_of(sigma_rel: float) -> float:
    """The exponent of the profile whose standard deviation is `sigma_rel` of the training time (ibid., appendix C).

    sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)), solved for its largest root.
    """
    inverse = sigma_rel**-2
    return float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max())


def average_(average: FloatArray, weights: FloatArray, decay: float) -> None:
    """average <- decay average + (1 - decay) weights, in place, on the same range of each, (n,) float32."""
    if library.for_updates():
        update.average_(average, weights, 1 - decay)
        return
    for block in blocks(0, average.size):
        average[block] += np.float32(1 - decay) * (weights[block] - average[block])


BY_UPDATES = {"constant": constant_decay, "mindone": mindone_decay}
