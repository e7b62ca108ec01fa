"""Opens files of tensors. The first bytes decide the format, never the file name."""

from collections.abc import Callable
from pathlib import Path

from launcher.contract.config import ConfigError
from vpred_train.foreign import require_regular
from vpred_train.weights.formats.mindspore_ckpt import read_mindspore
from vpred_train.weights.formats.safetensors_file import read_safetensors
from vpred_train.weights.formats.stored_tensor import Contents
from vpred_train.weights.formats.torch_pickle import LEGACY_START, read_torch

KNOWN = "known are MindSpore .ckpt, PyTorch .ckpt/.pt/.bin and safetensors"
FOREIGN = {
    b"version https://git-lfs": "a Git LFS pointer, not the weights; run `git lfs pull`",
    b"<!DOCTYPE": "a web page, not the weights; download the file itself",
    b"<html": "a web page, not the weights; download the file itself",
}


def open_contents(path: Path) -> Contents:
    """Return the names, types and shapes in `path`; the values are read later.

    Raises ConfigError: when the file cannot be read or has an unknown format.
    """
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(32)
        return _reader(path, start)(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {KNOWN}") from None


def _reader(path: Path, start: bytes) -> Callable[[Path], Contents]:
    for foreign, text in FOREIGN.items():
        if start.startswith(foreign):
            raise ConfigError(f"{path}: {text}")
    if start.startswith((b"PK\x03\x04", LEGACY_START)):
        return read_torch
    if start[8:9] == b"{":
        return read_safetensors
    if start[:1] == b"\x0a":  # protobuf: field 1, length-delimited
        return read_mindspore
    raise ConfigError(f"{path}: {'empty' if not start else f'starts with {start[:8]!r}'}; {KNOWN}")
