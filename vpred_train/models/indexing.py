"""Cuts, looks up and averages with the functions that the accelerator's table names under `indexing`.

"ops" becomes Split, StridedSlice, Gather and ReduceMean, for which Ascend has only CANN's old kernels. "mint" becomes
SplitWithSize, Embedding and MeanExt, which have aclnn kernels. mint's own cuts are views of memory, and are not used:
no kernel for Ascend has their names.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor, mint, ops

from vpred_train.kernels import implementations

MOST_PARTS = 100  # MindSpore's compiler handles the sizes of SplitWithSize by recursion, which it limits to 1000 levels
split_with_size = ops.auto_generate.SplitWithSize()


def _split(x: Tensor, length: int, axis: int) -> tuple[Tensor, ...]:
    total = x.shape[axis]
    if total > MOST_PARTS * length:
        return ops.split(x, length, axis)
    rest = (total % length,) if total % length else ()
    return split_with_size(x, (length,) * (total // length) + rest, axis)


def _chunk(x: Tensor, parts: int, axis: int) -> tuple[Tensor, ...]:
    return split_with_size(x, (x.shape[axis] // parts,) * parts, axis)


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    if x.shape[2] > height:
        x = split_with_size(x, (height, x.shape[2] - height), 2)[0]
    if x.shape[3] > width:
        x = split_with_size(x, (width, x.shape[3] - width), 3)[0]
    return x


def _crop_by_slice(x: Tensor, height: int, width: int) -> Tensor:
    return x[:, :, :height, :width]


def _rows_by_gather(numbers: Tensor, table: Tensor) -> Tensor:
    return ops.gather(table, numbers, 0)


def _mean_by_reduce(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return x.mean(axes)


@dataclass(frozen=True)
class Indexing:
    """Holds the functions.

    chunk: x, number of parts, which divides the axis, and axis -> the parts
    split: x, length of a part, axis -> the parts; the last may be shorter
    crop: x (B, C, H, W), height, width -> x from its first row and column
    rows: numbers, table (rows, width) -> the rows of these numbers
    mean: x, axes -> the mean over them; without axes that of all elements
    """

    chunk: Callable[..., Any]
    split: Callable[..., Any]
    crop: Callable[..., Any]
    rows: Callable[..., Any]
    mean: Callable[..., Any]


INDEXING = {
    "ops": Indexing(ops.chunk, ops.split, _crop_by_slice, _rows_by_gather, _mean_by_reduce),
    "mint": Indexing(_chunk, _split, _crop, mint.nn.functional.embedding, mint.mean),
}


def chosen() -> Indexing:
    """Return the functions for layers that are built now."""
    return INDEXING[implementations.chosen().indexing]
