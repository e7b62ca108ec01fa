"""Reads PyTorch's .ckpt, .pt and .bin without torch and without unpickling: the zip format and its predecessor.

zip: <folder>/data.pkl and one uncompressed member <folder>/data/<key> for each storage.
Predecessor ("legacy"): the pickles magic number, protocol, system, object and list of storage keys; then for each key
its size (int64) and values.
TorchScript (torch.jit.save) has the zip format. Its object is a tree of modules; its code, which may be compressed, is
never read.
"""

import mmap
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from launcher.contract.config import ConfigError
from vpred_train.foreign import printable
from vpred_train.weights.formats.pickle_machine import Machine, Module, RefusedPickleError, TensorView
from vpred_train.weights.formats.stored_tensor import Contents, StoredTensor, item_size

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_START = b"\x80\x02\x8a\x0a" + LEGACY_MAGIC.to_bytes(10, "little")
LOCAL_HEADER_BYTES = 30
DAMAGED = (ValueError, OverflowError, EOFError, zipfile.BadZipFile, NotImplementedError)  # last: newer zip version
ENCRYPTED_OR_PATCHED = 0x61  # flags of a zip member
MOST_ATTRIBUTES = 1_000_000  # of a TorchScript; a hostile tree of shared modules would have 2^60
DEEPEST_MODULE = 100
Extent = tuple[int, int]  # offset, bytes


def read_torch(path: Path) -> Contents:
    """Return where each tensor of a state dict lies. A Lightning checkpoint has its state dict under "state_dict".

    A TorchScript archive has the container "torchscript", and its tensors have the names of its state dict.

    Raises ConfigError: when the file is damaged, or its pickle asks for more than tensors and plain values.
    """
    try:
        with path.open("rb") as file:
            value, storages = _read_zip(file) if file.read(2) == b"PK" else _read_legacy(file)
        if scripted := isinstance(value, Module):
            value = dict(_attributes(value))
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
    except DAMAGED as error:
        reason = printable(str(error)) or type(error).__name__
        raise ConfigError(f"{path}: damaged, or not a PyTorch checkpoint ({reason}); copy it again") from None
    return Contents("torchscript" if scripted else "torch", tensors)


def _attributes(root: Module) -> Iterator[tuple[str, Any]]:
    """Yield the attributes of all modules below `root`, with dotted names.

    Raises ValueError: when the tree is endless or too large.
    """
    waiting, count = [("", 0, root)], 0
    while waiting:
        prefix, depth, module = waiting.pop()
        count += len(module)
        if count > MOST_ATTRIBUTES or depth > DEEPEST_MODULE:
            raise ValueError(f"modules with more than {MOST_ATTRIBUTES:,} attributes, or deeper than {DEEPEST_MODULE}")
        for name, value in module.items():
            if isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", depth + 1, value))
            else:
                yield f"{prefix}{name}", value


def _read_zip(file: BinaryIO) -> tuple[Any, dict[str, Extent]]:
    """Return the pickled object and the extent of each storage."""
    file_bytes = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in members if name == "data.pkl" or name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise ValueError(f"a zip archive with {len(pickles)} data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        for name, info in members.items():
            if not name.startswith((pickles[0], f"{root}data/", f"{root}byteorder")):
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name} is compressed, but torch.save compresses nothing")
            if info.flag_bits & ENCRYPTED_OR_PATCHED:
                raise ValueError(f"{name} is encrypted or patched")
        if f"{root}byteorder" in members and archive.read(f"{root}byteorder") != sys.byteorder.encode():
            raise ValueError("written on a machine with the other byte order")
        with archive.open(pickles[0]) as stream:
            value = Machine().run(stream)
        storages = {}
        for name, info in members.items():
            if not name.startswith(f"{root}data/"):
                continue
            file.seek(info.header_offset)
            header = file.read(LOCAL_HEADER_BYTES)
            names = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            start = info.header_offset + LOCAL_HEADER_BYTES + names
            if start + info.file_size > file_bytes:
                raise ValueError(f"{name} ends beyond the file")
            storages[name.removeprefix(f"{root}data/")] = (start, info.file_size)
    return value, storages


def _read_legacy(file: BinaryIO) -> tuple[Any, dict[str, Extent]]:
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:  # no read exceeds the file
        magic, _, system = (Machine().run(content) for _ in range(3))
        if magic != LEGACY_MAGIC:
            raise ValueError("no magic number")
        if not isinstance(system, dict) or "little_endian" not in system:
            raise ValueError("no description of the machine that wrote it")
        if system["little_endian"] != (sys.byteorder == "little"):
            raise ValueError("written on a machine with the other byte order")
        machine = Machine()
        value = machine.run(content)
        element_sizes = {storage.key: item_size(storage.dtype) for storage in machine.storages}
        keys = Machine().run(content)
        if not isinstance(keys, list) or any(not isinstance(key, str) or key not in element_sizes for key in keys):
            raise ValueError("no list of its storages")
        storages = {}
        for key in keys:
            size = int.from_bytes(content.read(8), "little") * element_sizes[key]
            start = content.tell()
            if start + size > len(content):
                raise ValueError(f"ends within storage {key}")
            storages[key] = (start, size)
            content.seek(start + size)
    return value, storages


def _stored(path: Path, view: TensorView, storages: dict[str, Extent]) -> StoredTensor:
    element = item_size(view.storage.dtype)
    if view.storage.key not in storages:
        raise ValueError(f"no storage {view.storage.key}")
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
    """Return the strides of C order, in elements."""
    strides = [1]
    for length in reversed(shape[1:]):
        strides.append(strides[-1] * length)
    return tuple(reversed(strides))[: len(shape)]
