"""Stores what is known of every row of a folder as columns in one file, which is mapped and not read.

Columns of n rows, c captions and f files:
file: number of a row's file among the names, (n,) int32; -1 for none.
offset, length: (n,) int64.
size: width and height in pixels of the upright image, (n, 2) int32.
content_hash: xxh3-128 of the encoded image, (n, 16) uint8.
origin, fault: n strings.
text: c strings, the captions of every row; one blank caption for a row without any.
caption_ends: where each row's captions end in `text`, (n,) int64; without this column each row has one caption.
name: f strings.
file_bytes, file_mtime_ns: (f,) int64; -1 where there is no such file.
The first `tables` files list the others.
"""

import mmap
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.sources.columns import Columns, Mapped, mapped_again, read_columns, string_at, write_columns

VERSION = "3"
AT_A_TIME = 1 << 14
DECIDING = ("size", "content_hash", "text", "text_ends", "origin", "origin_ends", "caption_ends")


@dataclass(frozen=True, eq=False)
class Index:
    """Holds the columns of a folder's index.

    tables: number of files that list the others.
    digest: digest of what training sees of the columns.
    path: file that the columns are mapped from; None while they are only in memory.
    seal: digest of that file.
    pages: mapping of that file.
    """

    format: str
    tables: int
    columns: Columns
    digest: str
    path: Path | None = None
    seal: str = ""
    pages: mmap.mmap | None = None

    def __len__(self) -> int:
        return len(self.columns["file"])

    def string(self, column: str, row: int) -> str:
        """Return one value of a column of strings."""
        return string_at(self.columns, column, row)

    def strings(self, column: str) -> list[str]:
        """Return all values of a column of strings."""
        content, ends = bytes(self.columns[column]), self.columns[f"{column}_ends"]
        found, start = [], 0
        for first in range(0, len(ends), AT_A_TIME):  # all ends as Python integers would outgrow the strings
            for end in ends[first : first + AT_A_TIME].tolist():
                found.append(content[start:end].decode(errors="surrogateescape"))
                start = end
        return found

    def captions(self, row: int) -> tuple[str, ...]:
        """Return a row's captions."""
        return tuple(self.string("text", number) for number in self.caption_numbers(np.array([row])).tolist())

    def caption_counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many captions each of some rows (n,) has: (n,) int64."""
        if "caption_ends" not in self.columns:
            return np.ones(len(rows), np.int64)
        ends = self.columns["caption_ends"]
        counts: NDArray[np.int64] = ends[rows] - _starts(ends, rows)
        return counts

    def caption_numbers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the numbers of the captions of some rows (n,) among all captions, row after row."""
        if "caption_ends" not in self.columns:
            return rows
        counts = self.caption_counts(rows)
        shifts = _starts(self.columns["caption_ends"], rows) - np.cumsum(counts) + counts
        numbers: NDArray[np.int64] = np.arange(int(counts.sum())) + np.repeat(shifts, counts)
        return numbers

    def caption_bytes(self, rows: NDArray[np.int64]) -> list[bytes]:
        """Return the captions of some rows (n,) in UTF-8, row after row."""
        numbers, ends, content = self.caption_numbers(rows), self.columns["text_ends"], self.columns["text"].data
        places = zip(_starts(ends, numbers).tolist(), ends[numbers].tolist(), strict=True)
        found = [bytes(content[start:end]) for start, end in places]
        if self.pages is not None:  # a caller that reads many reads all, and must not keep all pages in memory
            self.pages.madvise(mmap.MADV_DONTNEED)
        return found

    def joined(self, column: str, first: int, last: int) -> bytes:
        """Return the values of rows [first, last) in UTF-8, with NUL bytes between them."""
        ends = self.columns[f"{column}_ends"]
        begin = int(ends[first - 1]) if first else 0
        places = [0, *(ends[first:last] - begin).tolist()]
        content = bytes(self.columns[column][begin : begin + places[-1]])
        return b"\0".join(content[start:end] for start, end in pairwise(places))

    @property
    def is_bad(self) -> NDArray[np.bool_]:
        """Which rows have a fault, (n,) bool."""
        ends = self.columns["fault_ends"]
        return np.concatenate([ends[:1] > 0, ends[1:] > ends[:-1]])

    def __reduce__(self) -> tuple[Callable[..., "Index"], tuple[Any, ...]]:
        # A worker process maps the same file instead of getting a copy.
        if self.path is None:
            return Index, (self.format, self.tables, self.columns, self.digest)
        return reopened, (self.path, self.seal)


def _starts(ends: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where each of some values (n,) begins, from where all values end."""
    return np.where(numbers > 0, ends[numbers - 1], 0)


def make_index(format_name: str, tables: int, columns: Columns) -> Index:
    """Make an index in memory, with the digest of what training sees of it.

    The digest covers which rows have a fault, but not the faults' texts, since parts of these come from Pillow.
    Nothing in the digest depends on where the folder is.
    """
    index = Index(format_name, tables, columns, "")
    digest = xxhash.xxh3_128()
    for column in (*(columns[name] for name in DECIDING if name in columns), index.is_bad.astype(np.int64)):
        digest.update(np.ascontiguousarray(column).data)
    return replace(index, digest=digest.hexdigest())


def write_index(index: Index, path: Path) -> Index:
    """Replace the file `path` atomically, and return the same index mapped from it.

    Raises OSError or SafetensorError: when the file cannot be written.
    """
    facts = {"version": VERSION, "format": index.format, "tables": str(index.tables), "digest": index.digest}
    return _of_file(write_columns(path, index.columns, facts), path)


def read_index(path: Path) -> Index | None:
    """Return the index in `path`; None when this version cannot read it, or it is damaged, which is logged."""
    found = read_columns(path, VERSION)
    return None if found is None else _of_file(found, path)


def reopened(path: Path, seal: str) -> Index:
    """Return the index in `path`. Raises RuntimeError: when it no longer has this seal."""
    return _of_file(mapped_again(path, seal), path)


def _of_file(found: Mapped, path: Path) -> Index:
    facts = found.facts
    return Index(facts["format"], int(facts["tables"]), found.columns, facts["digest"], path, found.seal, found.pages)
