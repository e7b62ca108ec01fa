"""How the arrays of a batch lie in memory, such as that which a rank and its workers share."""

import math
import mmap

import numpy as np
from numpy.typing import NDArray

from data.fetching import Arrays, ArraySpec

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


class Recycler:
    """Gives memory, and again what was given when no array lies in it any more: new pages cost as much as reading
    what comes into them, and giving them back holds up all threads. For one taking thread; any may be the last owner.
    """

    def __init__(self) -> None:
        self._free: list[NDArray[np.uint8]] = []

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """(nbytes,) of whatever was there."""
        while self._free:
            memory = self._free.pop()
            if memory.nbytes >= nbytes:
                break
        else:
            memory = np.empty(nbytes, np.uint8)
        return np.asarray(_Lent(memory, self._free))[:nbytes]


class _Lent:
    """The owner, to NumPy, of all arrays in some memory: an array in its place would be passed over for its base."""

    def __init__(self, memory: NDArray[np.uint8], free: list[NDArray[np.uint8]]) -> None:
        self.__array_interface__ = memory.__array_interface__
        self._memory, self._free = memory, free

    def __del__(self) -> None:
        self._free.append(self._memory)


def _aligned(nbytes: int) -> int:
    return -(-nbytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
