"""Reads and writes MindSpore's .ckpt, a protobuf stream of named tensors, without protobuf or MindSpore.

The messages (mindspore/train/checkpoint_pb2.py), field numbers in parentheses:
    Checkpoint: Value value (1), repeated
    Value: string tag (1); TensorProto tensor (2)
    TensorProto: int64 dims (1), repeated; string tensor_type (2); bytes tensor_content (3)
A tensor above 512 MiB is split over several values of the same tag, each with the dims of the full tensor.
A text has type "str" and UTF-32 content. An optional trailer is "crc_num" and 10 bytes.
Wire format: https://protobuf.dev/programming-guides/encoding/
"""

import math
import mmap
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from launcher.contract.files import open_atomic
from vpred_train.foreign import printable
from vpred_train.weights.formats.stored_tensor import MOST_AXES, Contents, StoredTensor, item_size

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
PIECE_BYTES = 512 * 2**20  # a message must stay below protobuf's 2 GiB
TRAILER, TRAILER_BYTES = b"crc_num", 17
TYPES = {
    "Int8": "int8", "UInt8": "uint8", "Int16": "int16", "UInt16": "uint16", "Int32": "int32", "UInt32": "uint32",
    "Int64": "int64", "UInt64": "uint64", "Float16": "float16", "Float32": "float32", "Float64": "float64",
    "Bool": "bool", "BFloat16": "bfloat16",
}  # fmt: skip
Extent = tuple[int, int]  # [start, stop) in the file


def read_mindspore(path: Path) -> Contents:
    """Return where each tensor of `path` lies; the values are read later.

    Raises ConfigError: when the file is damaged or in another format.
    """
    pieces: dict[str, list[Extent]] = {}
    kinds: dict[str, tuple[str, tuple[int, ...]]] = {}
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        stop = len(data)
        if data[max(stop - TRAILER_BYTES, 0) :].startswith(TRAILER):
            stop -= TRAILER_BYTES
        try:
            for name, kind, dims, content in _values(data, stop):
                if kinds.setdefault(name, (kind, dims)) != (kind, dims):
                    raise ValueError(f"{name} is there twice with different shapes")
                pieces.setdefault(name, []).append(content)
            texts = {
                name: b"".join(data[slice(*extent)] for extent in pieces.pop(name)).decode("utf-32-le").rstrip("\0")
                for name, (kind, _) in kinds.items()
                if kind == "str"
            }
            tensors = {name: _stored(path, name, *kinds[name], extents) for name, extents in pieces.items()}
        except (ValueError, IndexError) as error:
            raise ConfigError(
                f"{path}: damaged, or not a MindSpore checkpoint ({printable(str(error))}); copy it again"
            ) from None
    return Contents("mindspore", tensors, texts)


def write_mindspore(path: Path, tensors: Mapping[str, NDArray[np.float32]], texts: Mapping[str, str]) -> None:
    """Write atomically a file that `mindspore.load_checkpoint` reads; `tensors` are fetched one at a time."""
    with open_atomic(path) as file:
        for name in tensors:
            array = np.asarray(tensors[name], np.float32, order="C")
            content = array.reshape(-1).view(np.uint8).data
            for start in range(0, len(content) or 1, PIECE_BYTES):
                _write_value(file, name, "Float32", array.shape, content[start : start + PIECE_BYTES])
        for name, text in texts.items():
            _write_value(file, name, "str", (0,), memoryview(text.encode("utf-32-le")))


def _values(data: mmap.mmap, stop: int) -> Iterator[tuple[str, str, tuple[int, ...], Extent]]:
    """Yield (name, type, dims, extent of the content) of each value."""
    for number, value in _fields(data, 0, stop):
        if number != 1 or isinstance(value, int):
            raise ValueError(f"field {number} where a value should be")
        parts = dict(_fields(data, *value))
        if 2 not in parts:
            raise ValueError("a value without a tensor: map parameters are not supported")
        name = data[slice(*_extent(parts.get(1, 0)))].decode()
        kind, content, dims = "", None, list[int]()
        for field, inner in _fields(data, *_extent(parts[2])):
            if field == 1:
                dims += [inner] if isinstance(inner, int) else islice(_varints(data, *inner), MOST_AXES + 1)
                if len(dims) > MOST_AXES:
                    raise ValueError(f"{name} has more than {MOST_AXES} axes")
            elif field == 2:
                kind = data[slice(*_extent(inner))].decode()
            elif field == 3:
                content = _extent(inner)
        yield name, kind, tuple(dims), content or (0, 0)


def _stored(path: Path, name: str, kind: str, dims: tuple[int, ...], extents: list[Extent]) -> StoredTensor:
    if kind not in TYPES:
        raise ValueError(f"{name} has the unknown type {kind!r}")
    pieces = tuple((start, stop - start) for start, stop in extents)
    found = sum(size for _, size in pieces)
    shape = () if dims == (0,) and found else dims  # MindSpore writes a scalar like this
    if found != math.prod(shape) * item_size(TYPES[kind]):
        raise ValueError(f"{name} of shape {shape} holds {found} bytes")
    return StoredTensor(path, TYPES[kind], shape, pieces)


def _fields(data: mmap.mmap, start: int, stop: int) -> Iterator[tuple[int, int | Extent]]:
    """Yield (field number, number or extent) for each field of one message."""
    at = start
    while at < stop:
        key, at = _varint(data, at)
        wire = key & 7
        if wire == VARINT:
            value, at = _varint(data, at)
            yield key >> 3, value
            continue
        if wire == BYTES:
            size, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if at + size > stop:
            raise ValueError(f"byte {at}: {size} bytes announced, {stop - at} there")
        yield key >> 3, (at, at + size)
        at += size


def _extent(value: int | Extent) -> Extent:
    if isinstance(value, int):
        raise ValueError("a number where bytes should be")
    return value


def _varints(data: mmap.mmap, start: int, stop: int) -> Iterator[int]:
    at = start
    while at < stop:
        value, at = _varint(data, at)
        yield value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """Return the number at byte `at` (7 bits per byte, lowest first) and the position behind it."""
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise ValueError(f"byte {at}: a number of more than 64 bits")


def _write_value(file: BinaryIO, name: str, kind: str, dims: tuple[int, ...], content: memoryview) -> None:
    head = b"".join(_encoded(1 << 3 | VARINT) + _encoded(dim) for dim in dims) + _prefix(2, len(kind)) + kind.encode()
    head += _prefix(3, len(content))
    tag = name.encode()
    start = _prefix(1, len(tag)) + tag + _prefix(2, len(head) + len(content))
    file.write(_prefix(1, len(start) + len(head) + len(content)) + start + head)
    file.write(content)


def _prefix(number: int, size: int) -> bytes:
    return _encoded(number << 3 | BYTES) + _encoded(size)


def _encoded(value: int) -> bytes:
    encoded = bytearray()
    while value > 127:
        encoded.append(value & 127 | 128)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
