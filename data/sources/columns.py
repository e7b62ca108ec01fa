"""Stores named arrays in one safetensors file, with a digest of its content. The file is mapped, not read.

Strings take two columns: their UTF-8 bytes one after the other, and where each ends (`NAME_ends`, int64).
"""

import json
import logging
import mmap
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save_file

logger = logging.getLogger(__name__)

DTYPES = {"I64": np.int64, "I32": np.int32, "U64": np.uint64, "U8": np.uint8}
PIECE_BYTES = 1 << 20
# The errors of parsing a header that is damaged or that other software wrote.
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)

Columns = Mapping[str, NDArray[Any]]
Facts = Mapping[str, str]


@dataclass(frozen=True, eq=False)
class Mapped:
    """Holds the content of a file.

    seal: digest of the columns and facts.
    pages: the mapping that holds the columns.
    """

    columns: Columns
    facts: Facts
    seal: str
    pages: mmap.mmap


def string_columns(name: str, values: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return the two columns that hold the strings."""
    encoded = [value.encode(errors="surrogateescape") for value in values]  # names need not be UTF-8
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}


def string_at(columns: Columns, name: str, row: int) -> str:
    """Return one value of a column of strings."""
    ends = columns[f"{name}_ends"]
    start = int(ends[row - 1]) if row else 0
    return bytes(columns[name][start : int(ends[row])]).decode(errors="surrogateescape")


def write_columns(path: Path, columns: Columns, facts: Facts) -> Mapped:
    """Replace the file `path` atomically, and map it. It gets the permissions of a new file of this process.

    Raises OSError or SafetensorError: when the file cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    whole = {name: np.ascontiguousarray(array) for name, array in columns.items()}
    seal = _start_seal(facts, {name: (array.dtype.newbyteorder("="), array.shape) for name, array in whole.items()})
    for name in sorted(whole):
        seal.update(whole[name].data)
    try:
        aside.touch()  # so that a fault of the folder raises OSError
        mode = aside.stat().st_mode
        save_file(whole, aside, {**facts, "seal": seal.hexdigest()})
        aside.chmod(mode)  # safetensors makes a file that other users may not read
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return mapped_again(path, seal.hexdigest())


def read_columns(path: Path, version: str) -> Mapped | None:
    """Read every byte of `path`, check the digest, and return the content mapped.

    Returns None when there is no intact file of this version; damage and read errors are logged. The pages stay out of
    this process's memory until they are used.
    """
    try:
        if not path.is_file():
            return None
        with path.open("rb") as file:
            found, places = _open(file)
            if found.facts.get("version") != version:
                return None
            kinds = {name: (array.dtype, array.shape) for name, array in found.columns.items()}
            seal = _start_seal(found.facts, kinds)
            for name in sorted(places):
                _digest_part(file, *places[name], seal)
    except OSError as error:
        logger.warning("%s: cannot be read (%s)", path, error.strerror)
        return None
    except UNREADABLE as error:
        logger.warning("%s: damaged (%s); it is made again", path, error)
        return None
    if seal.hexdigest() != found.seal:
        logger.warning("%s: damaged (its content is not what was written); it is made again", path)
        return None
    return found


def mapped_again(path: Path, seal: str) -> Mapped:
    """Map again a file that this run has written or read before. Only its seal is compared.

    Raises RuntimeError: when the file was replaced or cannot be read.
    """
    try:
        with path.open("rb") as file:
            found, _ = _open(file)
    except (OSError, *UNREADABLE) as error:
        raise RuntimeError(f"{path}: cannot be read any more ({error})") from None
    if found.seal != seal:
        raise RuntimeError(f"{path}: was replaced while it was in use")
    return found


def _open(file: BinaryIO) -> tuple[Mapped, dict[str, tuple[int, int]]]:
    """Return the mapped content, and the range of bytes in the file of each column."""
    start, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
    if 8 + start > size:
        raise ValueError("it is cut off")
    header = json.loads(file.read(start))
    facts = header.pop("__metadata__")
    pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    memory = np.frombuffer(pages, np.uint8)
    columns, places = {}, {}
    for name, entry in header.items():
        begin, end = (8 + start + place for place in entry["data_offsets"])
        places[name] = begin, end
        columns[name] = memory[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    seal = facts.pop("seal", "")
    return Mapped(columns, facts, seal, pages), places


def _start_seal(facts: Facts, kinds: Mapping[str, tuple[Any, tuple[int, ...]]]) -> xxhash.xxh3_128:
    table = {name: [np.dtype(dtype).str, list(shape)] for name, (dtype, shape) in kinds.items()}
    return xxhash.xxh3_128(json.dumps([dict(facts), table], sort_keys=True).encode())


def _digest_part(file: BinaryIO, begin: int, end: int, digest: xxhash.xxh3_128) -> None:
    file.seek(begin)
    while begin < end:
        piece = file.read(min(PIECE_BYTES, end - begin))
        if not piece:
            raise ValueError("it is cut off")
        digest.update(piece)
        begin += len(piece)
