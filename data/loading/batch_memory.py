"""Lays out the arrays of a batch in memory, such as the memory that a rank shares with its workers."""

import math
import mmap

import numpy as np
from numpy.typing import NDArray

from data.loading.fetcher import Arrays, ArraySpec

ALIGNMENT_BYTES = 64


def nbytes_of(specs: dict[str, ArraySpec], samples: int) -> int:
    """Return the memory of a batch of `samples` samples, in bytes."""
    return sum(_aligned(samples * spec.nbytes) for spec in specs.values())


def views(memory: mmap.mmap | NDArray[np.uint8], start: int, specs: dict[str, ArraySpec], samples: int) -> Arrays:
    """Return the arrays (samples, ...) of a batch. They begin at byte `start` and lie one after the other."""
    found: Arrays = {}
    for name, spec in specs.items():
        count = samples * math.prod(spec.shape)
        found[name] = np.frombuffer(memory, spec.dtype, count, start).reshape(samples, *spec.shape)
        start += _aligned(samples * spec.nbytes)
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
