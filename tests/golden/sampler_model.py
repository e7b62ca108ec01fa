"""The small nonlinear model, and its noise, that make_samplers.py and test_samplers_golden.py share."""

import numpy as np
from numpy.typing import NDArray

SHAPE = (2, 2, 2, 3)
SIGMA_AT = np.sqrt(1 - np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


def predict(z: NDArray[np.float32], t: float, prediction_type: str) -> NDArray[np.float32]:
    """What a network that believes x = tanh(...) predicts for z at t: "v", "eps" or "x0". Smooth in z and t.

    Its alpha and sigma are those of SD2, also when it samples with another schedule: it is only some function.
    """
    sigma = np.interp(t, np.arange(1000), SIGMA_AT)
    alpha = np.sqrt(1 - sigma**2)
    channel = np.arange(SHAPE[1]).reshape(-1, 1, 1)
    x = np.tanh(z + 0.6 * np.sin(t / 150 + channel)) * (0.9 - 0.2 * sigma)
    noise = (z - alpha * x) / sigma
    return {"v": alpha * noise - sigma * x, "eps": noise, "x0": x}[prediction_type].astype(np.float32)


def noise(shape: tuple[int, ...], step: int) -> NDArray[np.float32]:
    """Noise of a sampling step; step -1 is z_T."""
    return np.random.default_rng([7, step + 1]).standard_normal(shape).astype(np.float32)
