"""Reads and writes safetensors files and reads their sharded index.

The safetensors package checks a file. This module reads and writes the values, one tensor at a time. The package's
numpy side has no bfloat16, and it writes only tensors that are all in memory.
Format: https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field
from safetensors import SafetensorError, safe_open

from launcher.contract.config import ConfigError
from launcher.contract.files import open_atomic
from vpred_train.foreign import Foreign, parsed, printable, read_document, require_regular
from vpred_train.weights.formats.stored_tensor import MOST_AXES, Contents, StoredTensor

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
METADATA = "__metadata__"
AGAIN = "copy it again"


class Entry(Foreign):
    """Describes a tensor in the header.

    data_offsets: start and stop, bytes from the header's end.
    """

    dtype: str
    shape: Annotated[list[int], Field(max_length=MOST_AXES)]
    data_offsets: Annotated[list[int], Field(min_length=2, max_length=2)]


class Header(Foreign):
    """Reads the header before the values: the texts, and each tensor's entry under its name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Entry]
    texts: dict[str, str] | None = Field(None, alias="__metadata__")


class ShardIndex(Foreign):
    """Reads an ...index.json, which names the file of each tensor."""

    weight_map: dict[str, str]


def read_safetensors(path: Path) -> Contents:
    """Return where each tensor of `path` lies; the texts are the header's metadata.

    Raises ConfigError: when the file is damaged.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="np"):  # checks sizes and offsets
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: damaged, or not a safetensors file ({printable(str(error))}); {AGAIN}") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = parsed(Header, file.read(size), f"{path}: header", AGAIN)
    tensors = {}
    for name, entry in header.__pydantic_extra__.items():
        start, stop = entry.data_offsets
        dtype = TYPES.get(entry.dtype, entry.dtype)
        tensors[name] = StoredTensor(path, dtype, tuple(entry.shape), ((8 + size + start, stop - start),))
    return Contents("safetensors", tensors, header.texts or {})


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, NDArray[np.float32]],
    texts: Mapping[str, str],
    dtype: Literal["F32", "F16"] = "F32",
) -> None:
    """Write `tensors` atomically as `dtype`; they are fetched one at a time.

    shapes: the shape of each tensor, which the header needs before the values.
    Raises ValueError: when a tensor has another shape.
    """
    header: dict[str, Any] = {METADATA: dict(texts)}
    numpy_dtype = np.dtype(TYPES[dtype])
    at = 0
    for name, shape in shapes.items():
        stop = at + numpy_dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # aligns the values for mmap
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = np.asarray(tensors[name], numpy_dtype, order="C")
            if array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, announced as {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


def read_sharded(index: Path) -> Contents:
    """Return the tensors of all files that an ...index.json names.

    Raises ConfigError: when a file or tensor is missing.
    """
    remedy = "this is no index of safetensors files: download the folder again"
    document = read_document(ShardIndex, index, remedy)
    if document is None:
        raise ConfigError(f"{index}: no such file; download the folder again")
    shards: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    for name, place in document.weight_map.items():
        shard = Path(place).name
        if shard not in shards:
            shards[shard] = read_safetensors(index.parent / shard).tensors
        if name not in shards[shard]:
            raise ConfigError(
                f"{index}: {printable(repr(name))} is not where the index says ({shard}); download the folder again"
            )
        tensors[name] = shards[shard][name]
    return Contents("safetensors", tensors)
