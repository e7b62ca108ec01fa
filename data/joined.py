"""Several folders as one source."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.source import Folder, Sample


class Joined:
    """The samples of folders one behind the other; `origin` tells the folder too."""

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

    def sample(self, sample_id: int) -> Sample:
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        folder = self.folders[number]
        sample = folder.sample(sample_id - int(self.starts[number]))
        return replace(sample, sample_id=sample_id, origin=str(folder.path / sample.origin))

    def text(self, sample_id: int) -> str:
        number = int(np.searchsorted(self.starts, sample_id, side="right")) - 1
        return self.folders[number].text(sample_id - int(self.starts[number]))

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        sizes = np.empty((len(sample_ids), 2), np.int32)
        owner = np.searchsorted(self.starts, sample_ids, side="right") - 1
        for number in np.unique(owner):
            own = owner == number
            sizes[own] = self.folders[number].sizes(sample_ids[own] - self.starts[number])
        return sizes

    @property
    def content_hashes(self) -> NDArray[np.uint8]:
        return np.concatenate([folder.content_hashes for folder in self.folders])

    @property
    def bad(self) -> list[tuple[str, str]]:
        """(origin, what is wrong) of the rows that are left out."""
        return [(str(folder.path / origin), fault) for folder in self.folders for origin, fault in folder.bad]


def join(folders: Sequence[Folder]) -> Folder | Joined:
    """The one folder as it is, or several as one source."""
    return folders[0] if len(folders) == 1 else Joined(folders)
