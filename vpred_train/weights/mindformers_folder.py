"""A mindformers checkpoint of one iteration: each rank's safetensors, and metadata.json that tells what of each tensor
they hold.

Format: github.com/mindspore-lab/mindformers, mindformers/checkpoint/metadata.py (`save_metadata`). Its
`state_dict_metadata` has each tensor's shape and chunks (offset and shape, along every axis), its `storage_data` the
files in which the chunk "('name', (offset, ...))" lies, under its tensor's name. A tensor that is replicated is one
chunk in many files.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from vpred_train.weights.safetensors_file import read_safetensors
from vpred_train.weights.stored import StoredTensor

METADATA_FILE = "metadata.json"


def read_iteration(folder: Path) -> dict[str, NDArray[Any]]:
    """Every tensor, put together of its chunks; C order, in the type of the files (bfloat16 as float32).

    Raises ConfigError for files that are damaged or missing, and for chunks that do not make up the tensor.
    """
    where = folder / METADATA_FILE
    files: dict[str, dict[str, StoredTensor]] = {}
    tensors = {}
    try:
        document = json.loads(where.read_text(encoding="utf-8"))
        places = document["storage_data"]
        for name, entry in document["state_dict_metadata"].items():
            shape = tuple(entry["global_shape"])
            chunks = []
            for chunk in entry["chunk"]:
                offset = tuple(chunk["global_offset"])
                file = Path(places[str((name, offset))][0]["file_name"]).name
                if file not in files:
                    files[file] = read_safetensors(folder / file).tensors
                chunks.append((offset, files[file][name].plain()))
            tensors[name] = _together(where, name, shape, chunks)
    except (ValueError, TypeError, AttributeError, IndexError, OSError) as error:
        raise ConfigError(f"{where}: no record of a mindformers checkpoint ({error}); copy the folder again") from None
    except KeyError as error:
        raise ConfigError(f"{where}: {error} is not where the record says; copy the folder again") from None
    return tensors


def _together(
    where: Path, name: str, shape: tuple[int, ...], chunks: list[tuple[tuple[int, ...], NDArray[Any]]]
) -> NDArray[Any]:
    """One array of chunks at their offsets, which must cover each element once."""
    whole = np.empty(shape, chunks[0][1].dtype)
    times = np.zeros(shape, np.uint8)
    for offset, values in chunks:
        place = tuple(slice(low, low + length) for low, length in zip(offset, values.shape, strict=True))
        if whole[place].shape != values.shape:
            raise ConfigError(f"{where}: {name} is {shape}; its chunk of {values.shape} at {offset} goes beyond that")
        whole[place] = values
        times[place] += 1
    if (times != 1).any():
        raise ConfigError(
            f"{where}: the chunks of {name} leave out or repeat elements of {shape}; copy the folder again"
        )
    return whole
