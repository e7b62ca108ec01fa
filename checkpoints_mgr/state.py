"""What a checkpoint holds, and the values that the manager hands back."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.errors import CheckpointError

JSON: TypeAlias = Any  # what JSON holds without loss; the recursive union would make each reader narrow each number

# safetensors dtype name -> little-endian numpy dtype
DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_TENSOR_NAME = re.compile(r"[a-z][a-z0-9_]*/.+")


@dataclass(frozen=True)
class State:
    """One training state, equal on all ranks.

    whole: "component/tensor" (such as "model/unet.out.2.weight") -> array of any shape, of a dtype of DTYPES.
    progress: small JSON facts (step, samples_seen, seeds); the values of rank 0 are stored.
    """

    whole: dict[str, NDArray[Any]]
    progress: dict[str, JSON]


@dataclass(frozen=True)
class SaveResult:
    """A committed save; identical on all ranks. seconds is wall time as rank 0 measured it."""

    step: int
    path: Path
    size_bytes: int
    seconds: float


@dataclass(frozen=True)
class Restored:
    """A state read back and verified against its digests."""

    step: int
    state: State


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype (a key of DTYPES) and shape of one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        count = 1
        for extent in self.shape:
            count *= extent
        return count

    @property
    def size_bytes(self) -> int:
        return self.numel * DTYPES[self.dtype].itemsize

    @property
    def component(self) -> str:
        return self.name.split("/", 1)[0]

    @property
    def key(self) -> str:
        """The name inside the component's file: without the component."""
        return self.name.split("/", 1)[1]


def tensor_specs(state: State) -> list[TensorSpec]:
    """The table of the state's tensors, sorted by name. CheckpointError: a bad name, a dtype with no file form."""
    specs = []
    for name in sorted(state.whole):
        tensor = state.whole[name]
        if not _TENSOR_NAME.fullmatch(name) or name.endswith("/__metadata__"):
            raise CheckpointError(f"tensor name {name!r} is not of the form component/tensor")
        dtype = _DTYPE_NAMES.get(tensor.dtype.newbyteorder("<"))
        if dtype is None:
            known = ", ".join(str(known_dtype) for known_dtype in DTYPES.values())
            raise CheckpointError(f"tensor {name} has dtype {tensor.dtype}, which cannot be stored; known: {known}")
        specs.append(TensorSpec(name, dtype, tensor.shape))
    if not specs:
        raise CheckpointError("the state holds no tensor: nothing to save")
    return specs


def check_progress(progress: dict[str, JSON]) -> None:
    """CheckpointError unless the progress survives a trip through JSON unchanged (no NaN, no tuples)."""
    for key, value in progress.items():
        try:
            same = isinstance(key, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise CheckpointError(f"progress[{key!r}] is {value!r}, which JSON cannot hold unchanged")
