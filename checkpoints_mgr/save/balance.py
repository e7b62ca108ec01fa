"""Decides which rank writes which replicated tensor. The function is pure, so the ranks need not communicate."""

import heapq
from collections.abc import Iterator, Sequence

from checkpoints_mgr.state import DTYPES, Range, TensorSpec

SPLIT_ABOVE = 1.25  # times a rank's mean load: smaller tensors are not split, so that other tools can read the files


def shares(specs: Sequence[TensorSpec], loads_bytes: Sequence[int]) -> list[list[Range]]:
    """Distribute replicated tensors over the ranks by longest processing time first: result[rank], sorted by name.

    loads_bytes: what each rank writes besides, in bytes.
    If these loads are equal, the largest total is at most 4/3 of the best possible (Graham 1969). A tensor that alone
    would outweigh a rank's mean load is split between rows.
    """
    mean_bytes = (sum(loads_bytes) + sum(spec.size_bytes for spec in specs)) / len(loads_bytes)
    pieces = [piece for spec in specs for piece in _split(spec, mean_bytes)]
    heap = [(load, rank) for rank, load in enumerate(loads_bytes)]
    heapq.heapify(heap)
    result: list[list[Range]] = [[] for _ in loads_bytes]
    for piece in sorted(pieces, key=lambda piece: (-piece.size_bytes, piece.spec.name, piece.low)):
        load, rank = heapq.heappop(heap)
        result[rank].append(piece)
        heapq.heappush(heap, (load + piece.size_bytes, rank))
    return [sorted(share, key=lambda piece: (piece.spec.name, piece.low)) for share in result]


def _split(spec: TensorSpec, mean_bytes: float) -> Iterator[Range]:
    """Yield the full tensor, or blocks of rows of at most a quarter of the mean load each (at least one row)."""
    if spec.size_bytes <= SPLIT_ABOVE * mean_bytes or not spec.shape:
        yield Range(spec, 0, spec.numel)
        return
    row = spec.numel // spec.shape[0]
    rows = max(1, int(mean_bytes / 4 / (row * DTYPES[spec.dtype].itemsize)))
    for low in range(0, spec.numel, rows * row):
        yield Range(spec, low, min(low + rows * row, spec.numel))
