"""Exponential moving average of the weights, float32 in host memory."""

import numpy as np

from vpred_train.config import EmaConfig
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.optim import BLOCK_ELEMENTS


def ema_decay(config: EmaConfig, updates: int) -> float:
    """min(decay, (1 + n) / (10 + n)) after n updates: short memory first (Tensorflow's ExponentialMovingAverage)."""
    return min(config.decay, (1 + updates) / (10 + updates))


def ema_update_(average: FloatArray, weights: FloatArray, decay: float) -> None:
    """average <- decay average + (1 - decay) weights, in place, (size,) float32."""
    share = np.float32(1 - decay)
    for start in range(0, average.size, BLOCK_ELEMENTS):
        block = slice(start, start + BLOCK_ELEMENTS)
        average[block] += share * (weights[block] - average[block])
