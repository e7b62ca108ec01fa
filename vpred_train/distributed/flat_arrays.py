"""Several 1-D arrays as one flat space, without copying them together; its division among ranks."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from vpred_train.arrays import FloatArray

BLOCK_ELEMENTS = 1 << 15  # five float32 blocks of this size stay in a core's L2 cache
ZEROS = np.zeros(BLOCK_ELEMENTS, np.float32)


class FlatArrays:
    """The concatenation of `arrays` (1-D, float32) as one space of `size` elements. Slices with bounds can be read."""

    def __init__(self, arrays: Sequence[FloatArray]) -> None:
        self.arrays = arrays
        self.starts = np.cumsum([0, *(array.size for array in arrays)]).tolist()
        self.size = self.starts[-1]

    def __getitem__(self, wanted: slice) -> FloatArray:
        """Elements [start, stop): a view where they lie in one array, otherwise a copy."""
        parts = list(self._parts(wanted.start, wanted.stop))
        return parts[0] if len(parts) == 1 else np.concatenate([np.empty(0, np.float32), *parts])

    def view(self, start: int, stop: int) -> "FlatArrays":
        """Elements [start, stop) as a space of its own in the same memory."""
        return FlatArrays(list(self._parts(start, stop)))

    def add_(self, values: "FloatArray | FlatArrays") -> None:
        """Add `values` (size,) in place."""
        for own, start in zip(self.arrays, self.starts, strict=False):
            own += values[start : start + own.size]

    def set_(self, values: FloatArray) -> None:
        """Become `values` (size,) in place."""
        for own, start in zip(self.arrays, self.starts, strict=False):
            own[:] = values[start : start + own.size]

    def is_finite(self) -> bool:
        """Whether no element is infinite or NaN."""
        # Times zero only what is finite adds up to a number; twice as fast as numpy's isfinite.
        parts = (own[block] for own in self.arrays for block in blocks(0, own.size))
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
    """The arrays, with a copy in the place of each that begins where an earlier one does: MindSpore gives equal results
    of a graph, such as the gradients of two biases that are added up, the memory of one."""
    seen: set[int] = set()
    found = []
    for array in arrays:
        found.append(array.copy() if array.ctypes.data in seen else array)
        seen.add(array.ctypes.data)
    return found


def rank_pieces(values: FlatArrays, bounds: Sequence[int], length: int) -> Iterator[tuple[slice, FloatArray]]:
    """All ranks' ranges of `values`, piece by piece: the place in the longest range, and (ranks, length) elements.

    The array is the same each time; what it holds behind the end of a rank's range means nothing.
    """
    pieces = np.zeros((len(bounds) - 1, length), np.float32)
    for block in blocks(0, longest_range(bounds), length):
        for rank, piece in enumerate(pieces):
            part = values[range_in(bounds, rank, block)]
            piece[: part.size] = part
        yield block, pieces


def range_in(bounds: Sequence[int], rank: int, block: slice) -> slice:
    """The part of a rank's range that `block`, counted from the range's start, covers; it may be empty."""
    start, stop = bounds[rank : rank + 2]
    return slice(min(start + block.start, stop), min(start + block.stop, stop))


def bounds_of(size: int, world_size: int) -> list[int]:
    """Where each rank's range of `size` elements begins, and the end: contiguous, as equal as may be."""
    return [size * rank // world_size for rank in range(world_size + 1)]


def longest_range(bounds: Sequence[int]) -> int:
    """The elements of the rank that has most."""
    return int(np.diff(bounds).max())


def blocks(start: int, stop: int, length: int = BLOCK_ELEMENTS) -> Iterator[slice]:
    """[start, stop) in slices of at most `length` elements."""
    for first in range(start, stop, length):
        yield slice(first, min(first + length, stop))
