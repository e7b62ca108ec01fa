"""A copy of what a rank saves, so that training may go on and change the original."""

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.state import DTYPES, Parts

ALIGNMENT_BYTES = 64


class Arena:
    """Memory that is taken once, at the first save, and used again by each."""

    def __init__(self) -> None:
        self._memory: NDArray[np.uint8] = np.empty(0, np.uint8)

    def stage(self, parts: Parts) -> Parts:
        """Copies of all parts, little endian. The arena's earlier content is gone."""
        starts = [0]
        for part, _ in parts:
            starts.append(starts[-1] + -(-part.size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES)
        self._reserve(starts[-1])
        staged: Parts = []
        for (part, values), start in zip(parts, starts, strict=False):
            copy: NDArray[Any] = self._memory[start : start + part.size_bytes].view(DTYPES[part.spec.dtype])
            np.copyto(copy, values)
            staged.append((part, copy))
        return staged

    def _reserve(self, size_bytes: int) -> None:
        if size_bytes <= self._memory.size:
            return
        memory = mmap.mmap(-1, size_bytes)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            memory.madvise(mmap.MADV_HUGEPAGE)  # the first copy is otherwise slowed by a fault every 4 KiB
        self._memory = np.frombuffer(memory, np.uint8)
