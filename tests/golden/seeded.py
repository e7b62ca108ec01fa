"""Weights that a golden script and its test both derive from a tensor's name, so that no file has to hold them."""

import zlib

import numpy as np
from numpy.typing import NDArray


def weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random float32 of a network's usual size; norms' gains (1-D weights) lie around one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    return (gain + rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
