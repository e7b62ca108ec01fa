"""Reads captioned images in any storage format through one protocol. An index makes opening a source quick."""

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
from data.images.size import Size
from data.sources.index_builder import FORMATS, checked_index, up_to_date
from data.sources.index_file import Index
from data.sources.rows import Place, Reader

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Sample:
    """Holds one captioned image.

    origin: where it is listed, such as img_txt.csv:17 or shard-0003.tar:000017.jpg.
    size: of the upright image.
    content_hash: xxh3-128 of the encoded image, 32 hexadecimal digits.
    """

    sample_id: int
    captions: tuple[str, ...]
    origin: str
    size: Size
    content_hash: str
    place: Place
    reader: Reader

    @property
    def text(self) -> str:
        """The first caption, which samples, previews, the probe and validation use."""
        return self.captions[0]

    def read(self) -> bytes:
        """Read the encoded image. Raises DataError: when it cannot be read, or has changed since it was checked."""
        try:
            content = self.reader(self.place.path, self.place.offset, self.place.length)
        except (OSError, ValueError) as error:
            raise DataError(f"{self.origin}: {self.place.path} cannot be read any more ({error})") from None
        if xxhash.xxh3_128_hexdigest(content) != self.content_hash:
            raise DataError(f"{self.origin}: {self.place.path} has changed since it was checked; start again")
        return content


class Source(Protocol):
    """Holds samples 0 .. n-1. It can be pickled to a worker process, which then reads the same index."""

    name: str
    digest: str  # covers all images, captions and origins, but not where the folder is

    def __len__(self) -> int:
        """Return the number of samples."""

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of samples of each folder. The samples come one folder after the other."""

    def sample(self, sample_id: int) -> Sample:
        """Return one sample."""

    def captions(self, sample_id: int) -> tuple[str, ...]:
        """Return a sample's captions alone, at least one."""

    def caption_counts(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many captions each of some samples (n,) has: (n,) int64."""

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        """Return all captions of some samples (n,) in UTF-8, sample after sample."""

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return height and width in pixels of the upright images of some samples (n,): (n, 2) int32."""

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the xxh3-128 of the encoded images of some samples (n,): (n, 16) uint8."""


class Folder:
    """Holds the good rows of an indexed folder, in the order of its tables. It is the Source for all formats."""

    def __init__(self, path: Path, index: Index) -> None:
        self.path, self.index = path, index
        self.name, self.digest = str(path), index.digest
        self.bad_rows = np.flatnonzero(index.is_bad)
        self._good_before = self.bad_rows - np.arange(len(self.bad_rows))  # number of good rows before each bad row

    def __len__(self) -> int:
        return len(self.index) - len(self.bad_rows)

    def rows(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the index rows of some samples (n,): (n,) int64."""
        return sample_ids + np.searchsorted(self._good_before, sample_ids, side="right")

    def row(self, sample_id: int) -> int:
        """Return the index row of a sample."""
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
            size=Size(height, width),
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
        widths_and_heights: NDArray[np.int32] = self.index.columns["size"][self.rows(sample_ids)]
        return widths_and_heights[:, ::-1]

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        hashes: NDArray[np.uint8] = self.index.columns["content_hash"][self.rows(sample_ids)]
        return hashes

    @property
    def bad(self) -> list[tuple[str, str]]:
        """The rows that are left out, as (origin, what is wrong)."""
        return [(self.index.string("origin", row), self.index.string("fault", row)) for row in self.bad_rows.tolist()]


def open_source(
    path: Path,
    bad_samples: Literal["fail", "skip", "report"] = "fail",
    *,
    workers: int | None = None,
    checked: str = "",
) -> Folder:
    """Open a folder of any of FORMATS.

    If files are new or changed since the folder's index was made, they are looked at first, and the index is written
    again.
    bad_samples: "fail" raises for any bad row, "skip" only when no row is good, "report" never. `Folder.bad`
    lists them.
    workers: number of processes that look at images.
    checked: digest of the index that another process has just updated.
    Raises DataError: when the folder cannot be read, has no rows, or has bad rows, which it lists.
    """
    index = checked_index(path, checked) if checked else None
    if index is None:
        with _locked(path):
            index = up_to_date(path, workers)
    folder = Folder(path, index)
    if not len(index):
        raise DataError(f"{path}: its tables have no rows; add one row for each image")
    bad = folder.bad
    if bad and bad_samples != "report" and (bad_samples == "fail" or not len(folder)):
        shown = "\n".join(f"  {origin}: {fault}" for origin, fault in bad[:SHOWN_FAULTS])
        more = f"\n  and {len(bad) - SHOWN_FAULTS} more" if len(bad) > SHOWN_FAULTS else ""
        remedy = "repair or remove them, or set data.bad_samples: skip" if len(folder) else "repair them"
        raise DataError(f"{path}: {len(bad)} of {len(index)} rows are bad; {remedy}\n{shown}{more}")
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make the index.

    If the file system has no locks, each process makes the index, and the last one's stays. The lock is on the folder
    itself, so that no lock file is left.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # no such folder, which is reported later
        yield
        return
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
