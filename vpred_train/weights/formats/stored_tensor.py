"""Describes where a tensor lies in a file; the values are read on demand."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError

Float32 = NDArray[np.float32]
FLOATS = {"float64", "float32", "float16", "bfloat16"}
NUMPY_TYPES = {
    "float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool",
}  # fmt: skip
OTHER_TYPE = "give a file with floating-point weights (float64, float32, float16 or bfloat16)"
NO_NUMPY_TYPE = {"bfloat16": "uint16"}  # stored type -> the numpy type that holds its bits
MOST_AXES = 32  # every version of numpy allows this many


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Describes a tensor in a file.

    pieces: consecutive parts of the content, each (offset, size) in `path`, bytes.
    strides: in elements; None is C order.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[tuple[int, int], ...]
    strides: tuple[int, ...] | None = None

    @property
    def stored_bytes(self) -> int:
        """Return the size in the file, bytes."""
        return sum(size for _, size in self.pieces)

    def float32(self) -> Float32:
        """Return a new array of `shape`. float16 and bfloat16 widen exactly, float64 is rounded.

        Raises ConfigError: when the dtype is another one, or the file has become shorter.
        """
        if self.dtype not in FLOATS:
            raise ConfigError(f"{self.path}: a needed tensor is {self.dtype}; {OTHER_TYPE}")
        stored = self._elements()
        if self.dtype == "bfloat16":  # its bits are the upper half of a float32
            return (stored.astype(np.uint32) << 16).view(np.float32)
        with np.errstate(over="ignore"):  # float64 may overflow; the reader checks for inf
            return stored.astype(np.float32, order="C", copy=self.strides is not None)

    def plain(self) -> NDArray[Any]:
        """Return a new array of `shape` in the stored dtype; bfloat16, which numpy lacks, is widened to float32.

        Raises ConfigError: when numpy lacks the dtype, or the file has become shorter.
        """
        return self.float32() if self.dtype == "bfloat16" else np.asarray(self._elements(), order="C")

    def number(self) -> float:
        """Return the only element of a tensor of any dtype.

        Raises ConfigError: when there is not exactly one element, or it is NaN or inf.
        """
        if math.prod(self.shape) != 1:
            raise ConfigError(f"{self.path}: holds {self.shape} where one number should be; copy it again")
        found = float((self.float32() if self.dtype in FLOATS else self._elements()).item())
        if not math.isfinite(found):
            raise ConfigError(f"{self.path}: holds {found} where a number should be; copy it again")
        return found

    def _elements(self) -> NDArray[Any]:
        """Return the tensor in the numpy dtype that holds its bits."""
        stored_type = NO_NUMPY_TYPE.get(self.dtype, self.dtype)
        if stored_type not in NUMPY_TYPES:
            raise ConfigError(f"{self.path}: holds a tensor of type {self.dtype}, which has no reader here")
        content = np.empty(self.stored_bytes, np.uint8)
        at = 0
        with self.path.open("rb") as file:
            for offset, size in self.pieces:
                file.seek(offset)
                if file.readinto(content.data[at : at + size]) != size:
                    raise ConfigError(f"{self.path}: ends at byte {file.tell()}, within a tensor; copy it again")
                at += size
        elements = content.view(stored_type)
        if self.strides is None:
            return elements.reshape(self.shape)
        steps = [step * elements.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, steps, writeable=False)


class LazyTensors(Mapping[str, Float32]):
    """Makes a tensor again at each access, so that only tensors in use are in memory."""

    def __init__(self, makers: Mapping[str, Callable[[], Float32]]) -> None:
        self.makers = makers

    def __getitem__(self, name: str) -> Float32:
        return self.makers[name]()

    def __contains__(self, name: object) -> bool:
        return name in self.makers  # Mapping's default would read the tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)


@dataclass(frozen=True)
class Contents:
    """Holds the content of a file: tensors and texts (a record, the progress of a training) by name."""

    container: str
    tensors: dict[str, StoredTensor]
    texts: dict[str, str] = field(default_factory=dict)


def is_finite(array: Float32) -> bool:
    """Return whether no element is NaN or infinite, without a temporary as large as the array."""
    return not array.size or bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def count_text(array: Float32) -> str:
    """Say how many values of an array are NaN or infinite."""
    nan, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    found = " and ".join(f"{count:,} {kind}" for count, kind in ((nan, "NaN"), (infinite, "inf")) if count)
    return f"{found} of {array.size:,} values"


def item_size(dtype: str) -> int:
    """Return the size of one element of a stored dtype, bytes."""
    return np.dtype(NO_NUMPY_TYPE.get(dtype, dtype)).itemsize
