"""Defines what a checkpoint holds, and the values that the manager returns."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.errors import CheckpointError

JSON: TypeAlias = Any  # what JSON holds without loss; a recursive union type would make each reader narrow each number

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
_COMPONENT = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True)
class Segment:
    """Maps elements [low, high) of a tensor, in C order, to [start, start + high - low) of the shard's values."""

    tensor: str
    low: int
    high: int
    start: int


@dataclass(frozen=True)
class FlatShard:
    """Holds this rank's local elements of one component's tensors in one 1-D array.

    values: of a dtype of DTYPES. Elements that no segment names are padding and are not stored.
    shapes: tensor name (without the component) -> shape of the full tensor, equal on all ranks.
    segments: those of all ranks together hold each element of each tensor once.
    """

    values: NDArray[Any]
    shapes: Mapping[str, tuple[int, ...]]
    segments: Sequence[Segment]


@dataclass(frozen=True)
class State:
    """Holds one training state.

    whole: replicated tensors, equal on all ranks: "component/tensor" (such as "model/unet.out.2.weight") -> array of
    any shape, of a dtype of DTYPES.
    progress: small JSON facts that a resume needs (samples seen, seeds). Rank 0's are stored.
    shards: component -> this rank's part of it.
    record: JSON that describes the state (configuration, parameterization). Rank 0's is stored.
    """

    whole: dict[str, NDArray[Any]]
    progress: dict[str, JSON]
    shards: dict[str, FlatShard] = field(default_factory=dict)
    record: dict[str, JSON] = field(default_factory=dict)


@dataclass(frozen=True)
class SaveResult:
    """Reports a committed save. It is identical on all ranks; all times are wall time in seconds.

    total_s: from the call until all ranks knew that the save is committed.
    stall_s: how long the save blocked the rank that it blocked longest.
    stage_s, write_s: time of the slowest rank.
    commit_s: manifest and rename, of the slowest leader.
    """

    step: int
    path: Path
    size_bytes: int
    total_s: float
    stall_s: float
    stage_s: float
    write_s: float
    commit_s: float


@dataclass(frozen=True)
class Restored:
    """Holds a state that was read back and verified against its digests.

    created_unix_s: when its save ended, as its manifest says
    quarantined: steps that were found corrupt before this one.
    """

    step: int
    state: State
    created_unix_s: float
    quarantined: tuple[int, ...] = ()


@dataclass(frozen=True)
class TensorSpec:
    """Describes one tensor: name ("component/tensor"), dtype (a key of DTYPES) and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

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


@dataclass(frozen=True)
class Range:
    """Names elements [low, high) of a tensor, in C order."""

    spec: TensorSpec
    low: int
    high: int

    @property
    def size_bytes(self) -> int:
        return (self.high - self.low) * DTYPES[self.spec.dtype].itemsize

    @property
    def is_whole(self) -> bool:
        return (self.low, self.high) == (0, self.spec.numel)

    @property
    def key(self) -> str:
        """The name inside a safetensors file."""
        return self.spec.key if self.is_whole else f"{self.spec.key}@{self.low}:{self.high}"

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape inside a safetensors file: 1-D unless the range is the full tensor."""
        return self.spec.shape if self.is_whole else (self.high - self.low,)


Parts: TypeAlias = list[tuple[Range, NDArray[Any]]]  # ranges, each with its elements, 1-D


def whole_specs(state: State) -> list[TensorSpec]:
    """Return the specs of the replicated tensors, sorted by name.

    Raises CheckpointError: when a name is bad, or files cannot store a dtype.
    """
    return [_spec(name, state.whole[name].dtype, state.whole[name].shape) for name in sorted(state.whole)]


def shard_specs(state: State) -> list[TensorSpec]:
    """Return the specs of the sharded tensors, sorted by name. Raises as `whole_specs`."""
    return [
        _spec(f"{component}/{name}", shard.values.dtype, tuple(shard.shapes[name]))
        for component, shard in sorted(state.shards.items())
        for name in sorted(shard.shapes)
    ]


def check_state(state: State) -> None:
    """Check a state. Raises CheckpointError: when it cannot be stored as it is."""
    whole = {spec.component for spec in whole_specs(state)}
    for component, shard in state.shards.items():
        if component in whole:
            raise CheckpointError(f"component {component} is both whole and sharded")
        for segment in shard.segments:
            spec = _spec(f"{component}/{segment.tensor}", shard.values.dtype, shard.shapes.get(segment.tensor, ()))
            stop = segment.start + segment.high - segment.low
            if (
                not 0 <= segment.low <= segment.high <= spec.numel
                or not 0 <= segment.start <= stop <= shard.values.size
            ):
                raise CheckpointError(
                    f"{spec.name} has {spec.numel} elements, its shard {shard.values.size}: {segment}"
                )
    if not whole and not shard_specs(state):
        raise CheckpointError("the state holds no tensor: nothing to save")
    check_json("progress", state.progress)
    check_json("record", state.record)


def shard_parts(state: State) -> Parts:
    """Return this rank's elements of the sharded tensors, as views."""
    return [
        (
            Range(
                _spec(f"{component}/{segment.tensor}", shard.values.dtype, tuple(shard.shapes[segment.tensor])),
                segment.low,
                segment.high,
            ),
            shard.values[segment.start : segment.start + segment.high - segment.low],
        )
        for component, shard in state.shards.items()
        for segment in shard.segments
        if segment.low < segment.high
    ]


def whole_parts(state: State, ranges: Sequence[Range]) -> Parts:
    """Return these ranges of the replicated tensors: views of tensors in C order, copies of the others."""
    return [
        (part, np.asarray(state.whole[part.spec.name], order="C").reshape(-1)[part.low : part.high]) for part in ranges
    ]


def wanted_parts(template: State) -> Parts:
    """Return all elements that a rank restores, as views to be filled.

    Raises CheckpointError: when an array cannot be filled.
    """
    for name, array in [*template.whole.items(), *((name, shard.values) for name, shard in template.shards.items())]:
        if not (array.flags.writeable and array.flags.c_contiguous and array.dtype.isnative):
            raise CheckpointError(f"{name} cannot be filled: it must be writable, contiguous and of native byte order")
    wholes = [Range(spec, 0, spec.numel) for spec in whole_specs(template)]
    return whole_parts(template, wholes) + shard_parts(template)


@cache  # each save asks again for thousands of tensors
def _spec(name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> TensorSpec:
    component, _, key = name.partition("/")
    if not _COMPONENT.fullmatch(component) or key in ("", "__metadata__"):
        raise CheckpointError(f"tensor name {name!r} is not of the form component/tensor")
    stored = _DTYPE_NAMES.get(dtype.newbyteorder("<"))
    if stored is None:
        known = ", ".join(str(known_dtype) for known_dtype in DTYPES.values())
        raise CheckpointError(f"tensor {name} has dtype {dtype}, which cannot be stored; known: {known}")
    return TensorSpec(name, stored, shape)


def check_json(what: str, document: dict[str, JSON]) -> None:
    """Check that a document survives JSON unchanged (no NaN, no tuples). Raises CheckpointError: when it does not."""
    for key, value in document.items():
        try:
            same = isinstance(key, str) and json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise CheckpointError(f"{what}[{key!r}] is {str(value)[:80]}, which JSON cannot hold unchanged")
