"""Cuts, looks up and averages with the functions that the accelerator's table names under `indexing`.

"ops" becomes Split, StridedSlice, Gather and ReduceMean, for which Ascend has only CANN's old kernels. Those of "mint"
have aclnn kernels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mindspore import Tensor, mint, ops

from vpred_train.kernels import implementations


def _crop(x: Tensor, height: int, width: int) -> Tensor:
    return x[:, :, :height, :width]


def _crop_by_narrow(x: Tensor, height: int, width: int) -> Tensor:
    return mint.narrow(mint.narrow(x, 2, 0, height), 3, 0, width)


def _rows(numbers: Tensor, table: Tensor) -> Tensor:
    return ops.gather(table, numbers, 0)


def _mean(x: Tensor, axes: tuple[int, ...] | None = None) -> Tensor:
    return x.mean(axes)


@dataclass(frozen=True)
class Indexing:
    """Holds the functions.

    chunk: x, number of parts, axis -> the parts
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
    "ops": Indexing(ops.chunk, ops.split, _crop, _rows, _mean),
    "mint": Indexing(mint.chunk, mint.split, _crop_by_narrow, mint.nn.functional.embedding, mint.mean),
}


def chosen() -> Indexing:
    """Return the functions for layers that are built now."""
    return INDEXING[implementations.chosen().indexing]
