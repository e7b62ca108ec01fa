"""Reads arrays stored under the digest of all that determines them. Other input is a miss and never a wrong hit."""

import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.cache.shards import KEY, Shard, Spec, canonical, open_shards, read_at, remedy
from data.errors import DataError

OPEN_FILES = 256
ABSENT = -1
SUM_BYTES = 8

Rows = NDArray[np.int32]


@dataclass(frozen=True)
class Table:
    """Maps the keys of entries to their rows.

    high: upper halves of the keys, (n,) uint64 in rising order.
    low: lower halves, (n,) uint64.
    rows: (n,) int32.
    """

    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    rows: Rows

    @classmethod
    def joined(cls, tables: "Sequence[Table]") -> "Table":
        """Return the entries of some tables as one table."""
        none = [np.empty(0, np.uint64), np.empty(0, np.uint64), np.empty(0, np.int32)]
        parts = zip(none, *((each.high, each.low, each.rows) for each in tables), strict=True)
        return cls.sorted(*(np.concatenate(each) for each in parts))

    @classmethod
    def sorted(cls, high: NDArray[np.uint64], low: NDArray[np.uint64], rows: Rows) -> "Table":
        """Return the table of entries that come in any order. The arrays are sorted in place."""
        order = high.argsort(kind="stable")
        for array in (high, low, rows):
            array[:] = array[order]
        return cls(high, low, rows)

    def find(self, keys: NDArray[Any]) -> Rows:
        """Return the row of each of `keys` (n,) of dtype KEY, as (n,) int32; ABSENT where there is none."""
        found = np.full(len(keys), ABSENT, np.int32)
        high, low = keys["high"].astype(np.uint64), keys["low"].astype(np.uint64)
        places, left = np.searchsorted(self.high, high), np.arange(len(keys))
        while len(left := left[places[left] < len(self.high)]):
            left = left[self.high[places[left]] == high[left]]
            hits = self.low[places[left]] == low[left]
            found[left[hits]] = self.rows[places[left[hits]]]
            left = left[~hits]
            places[left] += 1  # another key with the same high half, or the same key from another shard
        return found


def make_table(keys: NDArray[Any], rows: Rows) -> Table:
    """Return the table of `keys` (n,) of dtype KEY and their rows (n,)."""
    return Table.sorted(keys["high"].astype(np.uint64), keys["low"].astype(np.uint64), rows.copy())


class Cache:
    """Reads the entries that were in `folder` when it was opened, by row. One thread may use it; copy it for another.

    shards: the shards' headers if they were read before; otherwise opening reads them.
    Raises DataError: when a shard is damaged.
    """

    def __init__(self, folder: Path, shards: Sequence[Shard] | None = None) -> None:
        self.folder = folder
        self.shards = open_shards(folder) if shards is None else shards
        self._first_rows = [shard.first_row for shard in self.shards]
        self._files: OrderedDict[int, int] = OrderedDict()  # file descriptors by shard number

    def __len__(self) -> int:
        return self.shards[-1].first_row + self.shards[-1].count if self.shards else 0

    @property
    def specs(self) -> list[Spec]:
        """The specs of all entries, each once."""
        return list({canonical(shard.spec): shard.spec for shard in self.shards}.values())

    def table(self, *specs: Spec) -> Table:
        """Return the entries of some specs, or of all when none is given. Raises DataError: when a shard is damaged."""
        shards = [shard for shard in self.shards if not specs or shard.spec in specs]
        count, start = sum(shard.count for shard in shards), 0
        high, low, rows = np.empty(count, np.uint64), np.empty(count, np.uint64), np.empty(count, np.int32)
        for shard in shards:
            part, keys = slice(start, start + shard.count), np.empty(shard.count, KEY)
            read_at(shard.path, shard.keys_at, keys)
            high[part], low[part] = keys["high"], keys["low"]
            rows[part] = np.arange(shard.first_row, shard.first_row + shard.count)
            start = part.stop
        return Table.sorted(high, low, rows)

    def shape(self, row: int) -> tuple[int, ...]:
        """Return the shape of an entry."""
        return self._shard(row).shape

    def read(self, row: int) -> NDArray[np.float32]:
        """Return one entry as a new float32 array. Raises DataError: when it is not what was written."""
        value = np.empty(self.shape(row), np.float32)
        self.read_into(row, value)
        return value

    def read_into(self, row: int, value: NDArray[np.float32]) -> None:
        """Do as `read`, into contiguous memory of the entry's shape: new memory costs more than reading does."""
        number = self._number(row)
        shard, memory = self.shards[number], value.data
        place = row - shard.first_row
        try:
            file = self._file(number)
            # The digest catches a short read.
            os.preadv(file, [memory], shard.values_at + place * value.nbytes)
            expected = os.pread(file, SUM_BYTES, shard.sums_at + place * SUM_BYTES)
        except OSError as error:
            raise DataError(f"{shard.path}: cannot be read ({error.strerror}); {remedy(self.folder)}") from None
        if xxhash.xxh3_64_intdigest(memory) != int.from_bytes(expected, "little"):
            raise DataError(f"{shard.path}: entry {place} is not what was written; {remedy(self.folder)}")

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the open files: a copy, also in another process, opens the files itself."""
        return {**vars(self), "_files": OrderedDict()}

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _number(self, row: int) -> int:
        """Return the number of the shard that holds an entry."""
        return bisect_right(self._first_rows, row) - 1

    def _shard(self, row: int) -> Shard:
        return self.shards[self._number(row)]

    def _file(self, number: int) -> int:
        """Return a shard's file descriptor. The least recently used file is closed when OPEN_FILES are open."""
        if number not in self._files:
            if len(self._files) == OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = os.open(self.shards[number].path, os.O_RDONLY)
        self._files.move_to_end(number)
        return self._files[number]


def damaged_entries(cache: Cache) -> list[str]:
    """Read every entry, and return the first fault of each damaged shard."""
    faults: dict[Path, str] = {}
    for row in range(len(cache)):
        try:
            cache.read(row)
        except DataError as error:
            faults.setdefault(cache._shard(row).path, str(error))
    return list(faults.values())
