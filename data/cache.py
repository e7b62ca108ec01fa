"""Arrays on disk under the digest of all that decides them, so that other input is a miss and never a wrong hit.

A shard is one safetensors file of entries that share `spec` and shape: `keys` (n, 16) uint8, `xxh3` (n,) uint64, one
for each row of `values` (n, ...) float32. Each writer has its own shards; the folder needs no other index.
"""

import contextlib
import json
import os
import secrets
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from data.errors import DataError

FORMAT = "vpred-cache-1"
SHARD_BYTES = 128 << 20  # what a killed writer loses at most
OPEN_FILES = 256
ABSENT = -1
KEY = np.dtype([("high", ">u8"), ("low", ">u8")])

Spec = Mapping[str, Any]  # what decides an entry beside its own content; JSON
Rows = NDArray[np.int64]


def entry_keys(spec: Spec, contents: Iterable[str]) -> NDArray[Any]:
    """xxh3-128 of `spec` and each content's own digest: (n,) of dtype KEY."""
    start = xxhash.xxh3_128(_canonical(spec).encode())
    digests = []
    for content in contents:
        digest = start.copy()
        digest.update(b"\0" + content.encode())
        digests.append(digest.digest())
    return np.frombuffer(b"".join(digests), KEY)


@dataclass(frozen=True)
class Shard:
    """One file: where its values begin, the shape of one of them, and the row of its first among all shards'."""

    path: Path
    spec: Spec
    shape: tuple[int, ...]
    values_at: int
    first_row: int


class Cache:
    """The entries that were in `folder` when it was opened, by row, for one thread: copy it for another one.

    Raises DataError for a damaged shard.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards: list[Shard] = []
        keys, sums = [np.empty(0, KEY)], [np.empty(0, np.uint64)]
        for path in sorted(folder.glob("*.safetensors")):
            shard, own_keys, own_sums = _open_shard(path, sum(map(len, keys)))
            self.shards.append(shard)
            keys.append(own_keys)
            sums.append(own_sums)
        self._sums = np.concatenate(sums)
        every = np.concatenate(keys)
        self._order = np.argsort(every, order=("high", "low"))
        self._keys = every[self._order].astype(KEY.newbyteorder("="))  # a native order is searched faster
        self._first_rows = [shard.first_row for shard in self.shards]
        self._files: OrderedDict[int, int] = OrderedDict()  # by the number of the shard

    def __len__(self) -> int:
        return len(self._sums)

    def find(self, keys: NDArray[Any]) -> Rows:
        """The row of each of `keys` (n,) of dtype KEY, ABSENT where there is none: (n,) int64."""
        wanted = keys.astype(self._keys.dtype)
        high = np.searchsorted(self._keys["high"], wanted["high"])
        rows = np.full(len(keys), ABSENT, np.int64)
        for index, (place, key) in enumerate(zip(high, wanted, strict=True)):
            while place < len(self) and self._keys["high"][place] == key["high"]:
                if self._keys["low"][place] == key["low"]:
                    rows[index] = self._order[place]
                    break
                place += 1
        return rows

    def shape(self, row: int) -> tuple[int, ...]:
        """The shape of an entry."""
        return self._shard(row).shape

    def read(self, row: int) -> NDArray[np.float32]:
        """A new array: one entry, float32. Raises DataError when it is not what was written."""
        value = np.empty(self.shape(row), np.float32)
        self.read_into(row, value)
        return value

    def read_into(self, row: int, value: NDArray[np.float32]) -> None:
        """`read` into contiguous memory of the entry's shape: new memory costs more than reading does."""
        number = self._number(row)
        shard, memory = self.shards[number], value.data
        offset = shard.values_at + (row - shard.first_row) * value.nbytes
        try:
            # The whole entry or an error: a short read is told by the digest.
            os.preadv(self._file(number), [memory], offset)
        except OSError as error:
            raise DataError(f"{shard.path}: cannot be read ({error.strerror}); {_remedy(self.folder)}") from None
        if xxhash.xxh3_64_intdigest(memory) != self._sums.item(row):
            place = row - shard.first_row
            raise DataError(f"{shard.path}: entry {place} is not what was written; {_remedy(self.folder)}")

    def __getstate__(self) -> dict[str, Any]:
        """A copy, also in another process, opens files of its own."""
        return {**vars(self), "_files": OrderedDict()}

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _number(self, row: int) -> int:
        """Of the shard that an entry is in."""
        return bisect_right(self._first_rows, row) - 1

    def _shard(self, row: int) -> Shard:
        return self.shards[self._number(row)]

    def _file(self, number: int) -> int:
        """A shard's open file; those that were not read for longest are closed."""
        if number not in self._files:
            if len(self._files) == OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[number] = os.open(self.shards[number].path, os.O_RDONLY)
        self._files.move_to_end(number)
        return self._files[number]


class CacheWriter:
    """Writes entries of one `spec` as shards; what is not yet a whole shard when the block raises is left out."""

    def __init__(self, folder: Path, spec: Spec, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.spec, self.shard_bytes = folder, spec, shard_bytes
        self._pending: list[tuple[np.void, NDArray[np.float32]]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: np.void, value: NDArray[np.float32]) -> None:
        """One entry (of dtype KEY, float32). Raises DataError when it cannot be written."""
        if self._pending and self._pending[0][1].shape != value.shape:
            self.flush()
        self._pending.append((key, np.array(value, np.float32)))
        if len(self._pending) * value.nbytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Make a shard of what is pending: written aside, synced, renamed."""
        if not self._pending:
            return
        values = np.stack([value for _, value in self._pending])
        tensors = {
            "keys": np.array([key for key, _ in self._pending], KEY).view(np.uint8).reshape(-1, 16),
            "xxh3": np.array([xxhash.xxh3_64_intdigest(value.data) for value in values], np.uint64),
            "values": values,
        }
        name = f"{self.spec['kind']}-{secrets.token_hex(8)}.safetensors"
        try:
            _write_whole(self.folder / name, save(tensors, {"format": FORMAT, "spec": _canonical(self.spec)}))
        except OSError as error:
            raise DataError(f"{self.folder}: cannot be written ({error.strerror}); make room or give another") from None
        self._pending.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.flush()


def damaged_entries(cache: Cache) -> list[str]:
    """Read every entry; what is wrong with each shard that has a fault, its first one."""
    faults: dict[Path, str] = {}
    for row in range(len(cache)):
        try:
            cache.read(row)
        except DataError as error:
            faults.setdefault(cache._shard(row).path, str(error))
    return list(faults.values())


def _open_shard(path: Path, first_row: int) -> tuple[Shard, NDArray[Any], NDArray[np.uint64]]:
    """The shard with its keys (n,) of dtype KEY and its digests (n,)."""
    try:
        with safe_open(path, framework="np") as file:  # proves sizes and offsets
            told = file.metadata() or {}
            if told.get("format") != FORMAT:
                raise DataError(
                    f"{path}: its format is {told.get('format')!r}, needed {FORMAT}; give a folder of vpred-data encode"
                )
            keys, sums = file.get_tensor("keys"), file.get_tensor("xxh3")
            shape = tuple(file.get_slice("values").get_shape())
        with path.open("rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            start = json.loads(opened.read(size))["values"]["data_offsets"][0]
    except (OSError, SafetensorError, KeyError) as error:
        raise DataError(f"{path}: damaged ({error}); {_remedy(path.parent)}") from None
    shard = Shard(path, json.loads(told["spec"]), shape[1:], 8 + size + start, first_row)
    return shard, keys.reshape(-1).view(KEY), sums


def _remedy(folder: Path) -> str:
    return f"remove this file and fill {folder} again with vpred-data encode"


def _canonical(spec: Spec) -> str:
    return json.dumps(spec, sort_keys=True, separators=(",", ":"))


def _write_whole(path: Path, content: bytes) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(content)
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
