"""Joins several folders to one source."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.sources.source import Folder, Sample


class MixtureSource:
    """Holds the samples of folders, one folder after the other. A sample's `origin` also names the folder."""

    def __init__(self, folders: Sequence[Folder]) -> None:
        self.folders = folders
        self.name = ", ".join(folder.name for folder in folders)
        self.digest = xxhash.xxh3_128_hexdigest("".join(folder.digest for folder in folders).encode())
        self.starts = np.cumsum([0, *self.counts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def counts(self) -> tuple[int, ...]:
        return tuple(len(folder) for folder in self.folders)

    def _owner(self, sample_id: int) -> tuple[Folder, int]:
        """Return a sample's folder and its number there."""
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return self.folders[number], sample_id - int(self.starts[number])

    def _by_folder(
        self, sample_ids: NDArray[np.int64]
    ) -> Iterator[tuple[Folder, NDArray[np.bool_], NDArray[np.int64]]]:
        """Yield each folder with some of the samples (n,), which of them it holds (n,), and their numbers there."""
        owner = np.searchsorted(self.starts, sample_ids, side="right") - 1
        for number in np.unique(owner).tolist():
            own = owner == number
            yield self.folders[number], own, sample_ids[own] - self.starts[number]

    def sample(self, sample_id: int) -> Sample:
        folder, number = self._owner(sample_id)
        sample = folder.sample(number)
        return replace(sample, sample_id=sample_id, origin=str(folder.path / sample.origin))

    def captions(self, sample_id: int) -> tuple[str, ...]:
        folder, number = self._owner(sample_id)
        return folder.captions(number)

    def caption_counts(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        counts = np.empty(len(sample_ids), np.int64)
        for folder, own, numbers in self._by_folder(sample_ids):
            counts[own] = folder.caption_counts(numbers)
        return counts

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        found: list[bytes] = []
        owner = np.searchsorted(self.starts, sample_ids, side="right") - 1
        for own in np.split(sample_ids, np.flatnonzero(np.diff(owner)) + 1):  # runs of one folder, in order
            for folder, _, numbers in self._by_folder(own):
                found += folder.caption_bytes(numbers)
        return found

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        sizes = np.empty((len(sample_ids), 2), np.int32)
        for folder, own, numbers in self._by_folder(sample_ids):
            sizes[own] = folder.sizes(numbers)
        return sizes

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        hashes = np.empty((len(sample_ids), 16), np.uint8)
        for folder, own, numbers in self._by_folder(sample_ids):
            hashes[own] = folder.content_hashes(numbers)
        return hashes

    @property
    def bad(self) -> list[tuple[str, str]]:
        """The rows that are left out, as (origin, what is wrong)."""
        return [(str(folder.path / origin), fault) for folder in self.folders for origin, fault in folder.bad]


def join(folders: Sequence[Folder]) -> Folder | MixtureSource:
    """Return one folder as it is, or several as one source."""
    return folders[0] if len(folders) == 1 else MixtureSource(folders)
