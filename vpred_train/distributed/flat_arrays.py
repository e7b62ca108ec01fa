"""Treats several 1-D arrays as one flat space, without copying them together, and divides it among ranks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vpred_train.arrays import FloatArray

BLOCK_ELEMENTS = 1 << 15  # five float32 blocks of this size stay in a core's L2 cache
ZEROS = np.zeros(BLOCK_ELEMENTS, np.float32)


class FlatArrays:
    """Represents the concatenation of `arrays` (1-D, float32) as one space of `size` elements.

    Slices can be read; they need both bounds.
    """

    def __init__(self, arrays: Sequence[FloatArray]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *(array.size for array in arrays)]).tolist()
        self.size = self.starts[-1]

    def __getitem__(self, wanted: slice) -> FloatArray:
        """Return the elements [start, stop): a view when they lie in one array, otherwise a copy."""
        parts = list(self._parts(wanted.start, wanted.stop))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])

    def view(self, start: int, stop: int) -> "FlatArrays":
        """Return the elements [start, stop) as a separate space in the same memory."""
        return FlatArrays(list(self._parts(start, stop)))

    def add_(self, values: "FloatArray | FlatArrays") -> None:
        """Add `values` (size,) in place."""
        for array, start in zip(self.arrays, self.starts, strict=False):
            array += values[start : start + array.size]

    def set_(self, values: FloatArray) -> None:
        """Copy `values` (size,) into the arrays."""
        for array, start in zip(self.arrays, self.starts, strict=False):
            array[:] = values[start : start + array.size]

    def is_finite(self) -> bool:
        """Return whether no element is infinite or NaN."""
        # 0 * inf and 0 * NaN are NaN, so the dot product with zeros shows them; twice as fast as numpy's isfinite.
        parts = (array[block] for array in self.arrays for block in blocks(0, array.size))
        with np.errstate(invalid="ignore"):
            return not any(np.isnan(part @ ZEROS[: part.size]) for part in parts)

    def _parts(self, start: int, stop: int) -> Iterator[FloatArray]:
        index = bisect_right(self.starts, start) - 1
        while start < stop:
            end = min(stop, self.starts[index + 1])
            if end > start:
                yield self.arrays[index][start - self.starts[index] : end - self.starts[index]]
            start, index = end, index + 1


def apart(arrays: Iterable[FloatArray]) -> list[FloatArray]:
    """Return the arrays, replacing each that begins where an earlier one does by a copy.

    MindSpore lets equal results of a graph share memory, such as the gradients of two biases that are added up.
    """
    seen: set[int] = set()
    found = []
    for array in arrays:
        found.append(array.copy() if array.ctypes.data in seen else array)
        seen.add(array.ctypes.data)
    return found


def padded_shards(values: FlatArrays, bounds: Sequence[int], length: int) -> Iterator[tuple[slice, FloatArray]]:
    """Yield all ranks' ranges of `values` piece by piece: the place in the longest range, and (ranks, length) elements.

    The array is reused for each piece. Its elements after the end of a rank's range mean nothing.
    """
    pieces = np.zeros((len(bounds) - 1, length), np.float32)
    for block in blocks(0, largest_shard(bounds), length):
        for rank, piece in enumerate(pieces):
            part = values[range_in(bounds, rank, block)]
            piece[: part.size] = part
        yield block, pieces


def range_in(bounds: Sequence[int], rank: int, block: slice) -> slice:
    """Return the part of a rank's range that `block` covers, which counts from the range's start. It may be empty."""
    start, stop = bounds[rank : rank + 2]
    return slice(min(start + block.start, stop), min(start + block.stop, stop))


def shard_bounds(size: int, world_size: int) -> list[int]:
    """Return the start of each rank's range of `size` elements, and the end.

    The ranges are contiguous and as equal as possible.
    """
    return [size * rank // world_size for rank in range(world_size + 1)]


def largest_shard(bounds: Sequence[int]) -> int:
    """Return the number of elements of the longest range."""
    return int(np.diff(bounds).max())


def blocks(start: int, stop: int, length: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """Divide [start, stop) into slices of at most `length` elements."""
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))
