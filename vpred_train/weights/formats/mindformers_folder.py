"""Reads a mindformers checkpoint of one iteration: each rank's safetensors, and metadata.json that lists their chunks.

Format: github.com/mindspore-lab/mindformers, mindformers/checkpoint/metadata.py (`save_metadata`).
state_dict_metadata: tensor name -> its shape and its chunks (offset and shape, along every axis).
storage_data: "('name', (offset, ...))" -> the files that hold this chunk, there under its tensor's name.
A replicated tensor is one chunk in many files.
"""

import math
import operator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from launcher.contract.config import ConfigError
from vpred_train.foreign import Foreign, printable, read_document
from vpred_train.weights.formats.safetensors_file import read_safetensors
from vpred_train.weights.formats.stored_tensor import MOST_AXES, StoredTensor

METADATA_FILE = "metadata.json"
AGAIN = "this is no record of a mindformers checkpoint: copy the folder again"
Sizes = Annotated[list[Annotated[int, Field(ge=0)]], Field(max_length=MOST_AXES)]


class Chunk(Foreign):
    """Describes a part of a tensor; its shape is that of the tensor in the file."""

    global_offset: Sizes


class Entry(Foreign):
    """Describes a tensor of at least one chunk."""

    global_shape: Sizes
    chunk: Annotated[list[Chunk], Field(min_length=1)]


class Place(Foreign):
    """Names a file that holds a chunk."""

    file_name: str


class Metadata(Foreign):
    """Reads metadata.json."""

    state_dict_metadata: dict[str, Entry]
    storage_data: dict[str, Annotated[list[Place], Field(min_length=1)]]


def read_iteration(folder: Path) -> dict[str, NDArray[Any]]:
    """Return every tensor, assembled from its chunks; C order, in the dtype of the files (bfloat16 as float32).

    Raises ConfigError: when a file is damaged or missing, or the chunks do not make up the tensor.
    """
    where = folder / METADATA_FILE
    metadata = read_document(Metadata, where, AGAIN)
    if metadata is None:
        raise ConfigError(f"{where}: no such file; copy the folder again")
    files: dict[str, dict[str, StoredTensor]] = {}

    def stored(name: str, offset: tuple[int, ...]) -> StoredTensor:
        places = metadata.storage_data.get(key := str((name, offset)))
        if places is None:
            raise ConfigError(f"{where}: {printable(repr(key))} is not where the record says; copy the folder again")
        file = Path(places[0].file_name).name
        if file not in files:
            files[file] = read_safetensors(folder / file).tensors
        if name not in files[file]:
            raise ConfigError(f"{where}: {printable(repr(name))} is not where the record says; copy the folder again")
        return files[file][name]

    tensors = {}
    for name, entry in metadata.state_dict_metadata.items():
        offsets = [tuple(each.global_offset) for each in entry.chunk]
        chunks = [(offset, stored(name, offset)) for offset in offsets]
        tensors[name] = _together(where, name, tuple(entry.global_shape), chunks)
    return tensors


def _together(
    where: Path, name: str, shape: tuple[int, ...], chunks: list[tuple[tuple[int, ...], StoredTensor]]
) -> NDArray[Any]:
    """Assemble one array from chunks at their offsets, which must cover each element exactly once."""
    name = printable(name)
    for offset, stored in chunks:
        ends = [low + length for low, length in zip(offset, stored.shape, strict=False)]
        if not len(offset) == len(stored.shape) == len(shape) or any(map(operator.gt, ends, shape)):
            raise ConfigError(f"{where}: {name} is {shape}; its chunk of {stored.shape} at {offset} goes beyond that")
    if sum(math.prod(stored.shape) for _, stored in chunks) != math.prod(shape):  # checked before memory is allocated
        raise ConfigError(
            f"{where}: the chunks of {name} leave out or repeat elements of {shape}; copy the folder again"
        )
    whole = np.empty(shape, chunks[0][1].plain().dtype)
    times = np.zeros(shape, np.uint8)
    for offset, stored in chunks:
        place = tuple(slice(low, low + length) for low, length in zip(offset, stored.shape, strict=True))
        whole[place] = stored.plain()
        times[place] += 1
    if (times != 1).any():
        raise ConfigError(
            f"{where}: the chunks of {name} leave out or repeat elements of {shape}; copy the folder again"
        )
    return whole
