"""Encodes small values as bytes, so that ranks can exchange them without unpickling anything."""

import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ARRAY = "__ndarray__"  # {_ARRAY: [dtype, shape]} stands for an array, whose bytes follow the text in order
_LENGTH_BYTES = 8  # the text's length comes before it, little-endian


def encode(value: Any) -> bytes:
    """Encode JSON values, and numpy arrays of numbers or booleans at any depth. Raises TypeError: for anything else."""
    contents: list[bytes] = []

    def described(found: Any) -> dict[str, Any]:
        if not isinstance(found, np.ndarray) or found.dtype.kind not in "biufc":
            raise TypeError(f"cannot send {type(found).__name__} {found!r} to other ranks; send what JSON holds")
        contents.append(found.tobytes())
        return {_ARRAY: [found.dtype.str, found.shape]}

    text = json.dumps(value, default=described).encode()
    return b"".join([len(text).to_bytes(_LENGTH_BYTES, "little"), text, *contents])


def decode(encoded: bytes) -> Any:
    """Decode what `encode` returned. Tuples have become lists. The arrays are new and writable."""
    end = _LENGTH_BYTES + int.from_bytes(encoded[:_LENGTH_BYTES], "little")

    def restored(found: dict[str, Any]) -> Any:
        nonlocal end
        if _ARRAY not in found:
            return found
        dtype, shape = np.dtype(found[_ARRAY][0]), found[_ARRAY][1]
        array: NDArray[Any] = np.ndarray(shape, dtype, encoded, end).copy()
        end += math.prod(shape) * dtype.itemsize
        return array

    return json.loads(encoded[_LENGTH_BYTES:end], object_hook=restored)
