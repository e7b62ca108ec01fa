"""PyTorch's .ckpt, .pt and .bin, read without torch and without unpickling: the zip format and its predecessor.

zip: <folder>/data.pkl and one uncompressed member <folder>/data/<key> for each storage. Predecessor ("legacy"): the
pickles magic number, protocol, system, object, list of storage keys; then for each key its size (int64) and values.
"""

import sys
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from launcher.contract.config import ConfigError
from vpred_train.weights.pickle_machine import Machine, RefusedPickleError, TensorView
from vpred_train.weights.stored import Contents, StoredTensor, item_size

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LOCAL_HEADER_BYTES = 30
Extent = tuple[int, int]  # offset, bytes


def read_torch(path: Path) -> Contents:
    """Where each tensor of a state dict lies; under "state_dict" if there is one (a Lightning checkpoint).

    Raises ConfigError for a damaged file and for a pickle that asks for more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            value, storages = (_read_zip if file.read(2) == b"PK" else _read_legacy)(file)
        state = value.get("state_dict", value) if isinstance(value, dict) else None
        if not isinstance(state, dict):
            raise ConfigError(f"{path}: holds a {type(value).__name__}, not a state dict; save model.state_dict()")
        tensors = {
            name: _stored(path, view, storages)
            for name, view in state.items()
            if isinstance(name, str) and isinstance(view, TensorView)
        }
    except RefusedPickleError as error:
        raise ConfigError(
            f"{path}: refused, because its pickle asks for {error}, which loading could run; "
            "give a safetensors file, or one with tensors alone"
        ) from None
    except (ValueError, KeyError, zipfile.BadZipFile, OverflowError) as error:
        raise ConfigError(f"{path}: damaged or no PyTorch checkpoint ({error}); copy it again") from None
    return Contents("torch", tensors)


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Extent]]:
    """The pickled object, and where the storages lie."""
    file.seek(0)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"a zip archive with {len(pickles)} data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine of the other byte order")
        with archive.open(pickles[0]) as stream:
            value = Machine().run(stream)  # type: ignore[arg-type]  # an IO[bytes] that reads like a file
        storages = {}
        for name, info in members.items():
            if not name.startswith(f"{root}data/"):
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed, which torch.save never does")
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            start = info.header_offset + LOCAL_HEADER_BYTES + names
            storages[name.removeprefix(f"{root}data/")] = (start, info.file_size)
    return value, storages


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, Extent]]:
    size = file.seek(0, 2)
    file.seek(0)
    magic, _, system = (Machine().run(file) for _ in range(3))
    if magic != LEGACY_MAGIC:
        raise ValueError("no magic number")
    if system["little_endian"] != (sys.byteorder == "little"):
        raise ValueError("written on a machine of the other byte order")
    machine = Machine()
    value = machine.run(file)
    element_sizes = {storage.key: item_size(storage.dtype) for storage in machine.storages}
    storages = {}
    for key in Machine().run(file):
        elements = int.from_bytes(file.read(8), "little")
        storages[key] = (file.tell(), elements * element_sizes[key])
        if file.seek(elements * element_sizes[key], 1) > size:
            raise ValueError(f"ends within storage {key}")
    return value, storages


def _stored(path: Path, view: TensorView, storages: dict[str, Extent]) -> StoredTensor:
    element = item_size(view.storage.dtype)
    start, size = storages[view.storage.key]
    if (view.storage.start + view.storage.size) * element > size:
        raise ValueError(f"storage {view.storage.key} holds {size} bytes, {view.storage.size * element} announced")
    offset = start + (view.storage.start + view.offset) * element
    if 0 in view.shape:
        return StoredTensor(path, view.storage.dtype, view.shape, ())
    reach = sum((length - 1) * stride for length, stride in zip(view.shape, view.strides, strict=True)) + 1
    strides = None if view.strides == _contiguous(view.shape) else view.strides
    return StoredTensor(path, view.storage.dtype, view.shape, ((offset, reach * element),), strides)


def _contiguous(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The strides of C order."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)]
