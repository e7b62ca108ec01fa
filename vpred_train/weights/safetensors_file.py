"""safetensors files and their sharded index.

The package checks a file; the values are read and written here, tensor by tensor, because its numpy side has no
bfloat16 and writes only what is whole in memory. Format: https://huggingface.co/docs/safetensors
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from launcher.contract.config import ConfigError
from launcher.contract.files import open_atomic
from vpred_train.weights.stored import Contents, StoredTensor

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64", "I32": "int32",
    "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
METADATA = "__metadata__"


def read_safetensors(path: Path) -> Contents:
    """Where each tensor of `path` lies; the texts are the header's metadata. Raises ConfigError for a damaged file."""
    try:
        with safe_open(path, framework="np"):  # proves sizes and offsets
            pass
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: damaged or no safetensors file ({error}); copy it again") from None
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, Any] = json.loads(file.read(size))
    texts = header.pop(METADATA, {})
    tensors = {}
    for name, entry in header.items():
        start, stop = entry["data_offsets"]
        dtype = TYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = StoredTensor(path, dtype, tuple(entry["shape"]), ((8 + size + start, stop - start),))
    return Contents("safetensors", tensors, texts)


def write_safetensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, NDArray[np.float32]],
    texts: Mapping[str, str],
    dtype: Literal["F32", "F16"] = "F32",
) -> None:
    """Write `tensors`, whose shapes are told beforehand, atomically as `dtype`; they are asked for one at a time."""
    header: dict[str, Any] = {METADATA: dict(texts)}
    numpy_dtype = np.dtype(TYPES[dtype])
    at = 0
    for name, shape in shapes.items():
        stop = at + numpy_dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, stop]}
        at = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that values are aligned when mapped
    with open_atomic(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            array = np.asarray(tensors[name], numpy_dtype, order="C")
            if array.shape != shape:
                raise ValueError(f"{name} is {array.shape}, announced as {shape}")
            file.write(array.reshape(-1).view(np.uint8).data)


def read_sharded(index: Path) -> Contents:
    """The tensors of all files that an ...index.json names. Raises ConfigError for a missing file or tensor."""
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = {name: read_safetensors(index.with_name(Path(name).name)).tensors for name in set(places.values())}
        return Contents("safetensors", {name: shards[shard][name] for name, shard in places.items()})
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index}: no index of safetensors files ({error}); download it again") from None
    except KeyError as error:
        raise ConfigError(f"{index}: {error} is not where the index says; download the folder again") from None
