"""What is known of every row of a folder, as columns in one safetensors file that is mapped and not read.

Columns: `file` (n,) int32, a row's file among the names, -1 for none; `offset`, `length` (n,) int64; `size` (n, 2)
int32, width and height of the upright image; `content_hash` (n, 16) uint8, xxh3-128 of the encoded image; `text`,
`origin` and `fault` (n) strings; `name` (f) strings, `file_bytes` and `file_mtime_ns` (f,) int64, -1 where there is no
such file. The first `tables` files list the others. Strings are their UTF-8 bytes in a row, and where each ends.
"""

import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save_file

VERSION = "2"
AT_A_TIME = 1 << 14
DTYPES = {"I64": np.int64, "I32": np.int32, "U8": np.uint8}
DECIDING = ("size", "content_hash", "text", "text_ends", "origin", "origin_ends")

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Index:
    """The columns; `path` is the file that they are mapped from, None while they are in memory alone."""

    format: str
    tables: int
    columns: Columns
    digest: str
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.columns["file"])

    def string(self, column: str, row: int) -> str:
        """One value of a column of strings."""
        ends = self.columns[f"{column}_ends"]
        start = int(ends[row - 1]) if row else 0
        return bytes(self.columns[column][start : int(ends[row])]).decode(errors="surrogateescape")

    def strings(self, column: str) -> list[str]:
        """All values of a column of strings."""
        content, ends = bytes(self.columns[column]), self.columns[f"{column}_ends"]
        found, start = [], 0
        for first in range(0, len(ends), AT_A_TIME):  # as Python's integers, all would take more than the strings
            for end in ends[first : first + AT_A_TIME].tolist():
                found.append(content[start:end].decode(errors="surrogateescape"))
                start = end
        return found

    def joined(self, column: str, first: int, last: int) -> bytes:
        """The values of rows [first, last) in UTF-8, with NUL bytes between them."""
        ends = self.columns[f"{column}_ends"]
        begin = int(ends[first - 1]) if first else 0
        places = [0, *(ends[first:last] - begin).tolist()]
        content = bytes(self.columns[column][begin : begin + places[-1]])
        return b"\0".join(content[start:end] for start, end in pairwise(places))

    @property
    def is_bad(self) -> NDArray[np.bool_]:
        """(n,): which rows have a fault."""
        ends = self.columns["fault_ends"]
        return np.concatenate([ends[:1] > 0, ends[1:] > ends[:-1]])

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        # A worker process maps the same file instead of getting a copy.
        if self.path is None:
            return Index, (self.format, self.tables, self.columns, self.digest, None)
        return reopened, (self.path, self.digest)


def make_index(format_name: str, tables: int, columns: Columns) -> Index:
    """An index in memory, with the digest of what a training sees of it: of faults which rows have one, since what is
    said of them is partly Pillow's."""
    index = Index(format_name, tables, columns, "")
    digest = xxhash.xxh3_128()
    for column in (*(columns[name] for name in DECIDING), index.is_bad.astype(np.int64)):
        digest.update(np.ascontiguousarray(column).data)
    return replace(index, digest=digest.hexdigest())


def string_columns(name: str, values: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Strings as the two columns that hold them."""
    encoded = [value.encode(errors="surrogateescape") for value in values]  # names need not be UTF-8
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    return {name: np.frombuffer(b"".join(encoded), np.uint8), f"{name}_ends": ends}


def write_index(index: Index, path: Path) -> Index:
    """The same index, mapped from `path`, which is replaced whole. Raises OSError."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    facts = {"version": VERSION, "format": index.format, "tables": str(index.tables), "digest": index.digest}
    try:
        aside.touch()  # so that what is wrong with the folder is an OSError
        save_file({name: np.ascontiguousarray(array) for name, array in index.columns.items()}, aside, facts)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    return reopened(path, index.digest)


def read_index(path: Path) -> Index | None:
    """The index in `path`; None when there is none that this version reads."""
    try:
        with path.open("rb") as file:
            start = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(min(start, path.stat().st_size)))
        facts = header.pop("__metadata__")
        if facts["version"] != VERSION:
            return None
        memory = np.asarray(np.memmap(path, np.uint8, "r"))
        columns = {}
        for name, entry in header.items():
            begin, end = (8 + start + place for place in entry["data_offsets"])
            columns[name] = memory[begin:end].view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return Index(facts["format"], int(facts["tables"]), columns, facts["digest"], path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def reopened(path: Path, digest: str) -> Index:
    """The index in `path`. Raises RuntimeError when it is not the one of that digest any more."""
    index = read_index(path)
    if index is None or index.digest != digest:
        raise RuntimeError(f"{path}: the index was replaced while it was in use")
    return index
