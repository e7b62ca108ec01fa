"""How the arrays of a batch lie in memory, such as that which a rank and its workers share."""

import math
import mmap

import numpy as np
from numpy.typing import NDArray

from data.loading.fetcher import Arrays, ArraySpec

ALIGNMENT_BYTES = 64


def nbytes_of(specs: dict[str, ArraySpec], samples: int) -> int:
    """What a batch of so many samples takes."""
    return sum(_aligned(samples * spec.nbytes) for spec in specs.values())


def views(memory: mmap.mmap | NDArray[np.uint8], start: int, specs: dict[str, ArraySpec], samples: int) -> Arrays:
    """The arrays (samples, ...) of a batch that begins at byte `start`, one behind the other."""
    found: Arrays = {}
    for name, spec in specs.items():
        count = samples * math.prod(spec.shape)
        found[name] = np.frombuffer(memory, spec.dtype, count, start).reshape(samples, *spec.shape)
        start += _aligned(samples * spec.nbytes)
    return found


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
