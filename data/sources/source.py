"""Captioned images behind one protocol, whatever they lie in; opened through an index, so that it takes no time."""

import fcntl
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.errors import DataError
from data.sources.index_builder import FORMATS, checked_index, up_to_date
from data.sources.index_file import Index
from data.sources.rows import Place, Reader

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Sample:
    """One captioned image; `origin` names where it is listed, such as img_txt.csv:17 or shard-0003.tar:000017.jpg.

    width, height: in pixels, upright. content_hash: xxh3-128 of the encoded image, 32 hexadecimal digits.
    """

    sample_id: int
    captions: tuple[str, ...]
    origin: str
    width: int
    height: int
    content_hash: str
    place: Place
    reader: Reader

    @property
    def text(self) -> str:
        """The first caption: the one that samples, previews, the probe and validation go by."""
        return self.captions[0]

    def read(self) -> bytes:
        """The encoded image. Raises DataError when it is not the one that was checked."""
        try:
            content = self.reader(self.place.path, self.place.offset, self.place.length)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.origin}: {self.place.path} cannot be read any more ({error})") from None
        if xxhash.xxh3_128_hexdigest(content) != self.content_hash:
            raise DataError(f"{self.origin}: {self.place.path} has changed since it was checked; start again")
        return content


class Source(Protocol):
    """Samples 0 .. n-1. It can be pickled to a worker process, which then reads the same index."""

    name: str
    digest: str  # of all images and captions and where each is listed, not of where the folder is

    def __len__(self) -> int:
        """How many there are."""

    @property
    def counts(self) -> tuple[int, ...]:
        """How many of each of its folders; they come one folder after the other."""

    def sample(self, sample_id: int) -> Sample:
        """One of them."""

    def captions(self, sample_id: int) -> tuple[str, ...]:
        """Its captions alone, at least one."""

    def caption_counts(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,): how many captions each of some (n,) has."""

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        """All captions of some (n,) in UTF-8, one sample's behind the other's."""

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """(n, 2): width and height in pixels of the upright images of some (n,)."""

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """(n, 16): xxh3-128 of the encoded images of some (n,)."""


class Folder:
    """The good rows of an indexed folder, in the order of its tables: the one Source of all formats."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self.name, self.digest = str(path), index.digest
        self.bad_rows = np.flatnonzero(index.is_bad)
        self._good_before = self.bad_rows - np.arange(len(self.bad_rows))  # each bad row

    def __len__(self) -> int:
        return len(self.index) - len(self.bad_rows)

    def rows(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of the index: (n,)."""
        return sample_ids + np.searchsorted(self._good_before, sample_ids, side="right")

    def row(self, sample_id: int) -> int:
        """That of the index."""
        return sample_id + bisect_right(self._good_before, sample_id)

    @property
    def counts(self) -> tuple[int, ...]:
        return (len(self),)

    def sample(self, sample_id: int) -> Sample:
        index, row = self.index, self.row(sample_id)
        columns = index.columns
        file = self.path / index.string("name", int(columns["file"][row]))
        width, height = columns["size"][row].tolist()
        return Sample(
            sample_id=sample_id,
            captions=index.captions(row),
            origin=index.string("origin", row),
            width=width,
            height=height,
            content_hash=bytes(columns["content_hash"][row]).hex(),
            place=Place(file, int(columns["offset"][row]), int(columns["length"][row])),
            reader=FORMATS[index.format].read,
        )

    def captions(self, sample_id: int) -> tuple[str, ...]:
        return self.index.captions(self.row(sample_id))

    def caption_counts(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.index.caption_counts(self.rows(sample_ids))

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        return self.index.caption_bytes(self.rows(sample_ids))

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        sizes: NDArray[np.int32] = self.index.columns["size"][self.rows(sample_ids)]
        return sizes

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        hashes: NDArray[np.uint8] = self.index.columns["content_hash"][self.rows(sample_ids)]
        return hashes

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(origin, what is wrong) of the rows that are left out."""
        return [(self.index.string("origin", row), self.index.string("fault", row)) for row in self.bad_rows.tolist()]


def open_source(
    path: Path,
    bad_samples: Literal["fail", "skip", "tell"] = "fail",
    *,
    workers: int | None = None,
    checked: str = "",
) -> Folder:
    """The samples of a folder of any of FORMATS.

    Files that are new or changed since the folder's index was made are looked at first, by `workers` processes, and the
    index is written again; `checked` is the digest of the index that another process has just made so. Raises DataError
    listing bad rows, with "skip" only when no row is good, with "tell" never: they are in `Folder.bad`.
    """
    index = checked_index(path, checked) if checked else None
    if index is None:
        with _locked(path):
            index = up_to_date(path, workers)
    folder = Folder(path, index)
    if not len(index):
        raise DataError(f"{path}: its tables have no rows; add one row for each image")
    bad = folder.bad
    if bad and bad_samples != "tell" and (bad_samples == "fail" or not len(folder)):
        shown = "\n".join(f"  {origin}: {fault}" for origin, fault in bad[:SHOWN_FAULTS])
        more = f"\n  and {len(bad) - SHOWN_FAULTS} more" if len(bad) > SHOWN_FAULTS else ""
        remedy = "mend or remove them, or set data.bad_samples: skip" if len(folder) else "mend them"
        raise DataError(f"{path}: {len(bad)} of {len(index)} rows are bad; {remedy}\n{shown}{more}")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time makes the index, where the file system can lock; elsewhere each makes it, and the last
    one's stays. The lock is on the folder itself, so that no file is left."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # no such folder: said later
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
