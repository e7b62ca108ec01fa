"""Reads and writes the files of a cache. A shard is one safetensors file of entries that share `spec` and shape.

A shard holds `keys` (n, 16) uint8, `xxh3` (n,) uint64 with one digest for each row of `values`, and `values` (n, ...)
float32. Each writer writes separate shards. The folder needs no other index.
"""

import contextlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import xxhash
from numpy.typing import NDArray
from safetensors.numpy import save

from data.errors import DataError

FORMAT = "vpred-cache-1"
SHARD_BYTES = 128 << 20  # a killed writer loses at most this
SHARDS_AT_ONCE = 8
HEAD_BYTES, MOST_HEADER_BYTES = 4096, 1 << 20
ITEM_BYTES = {"U8": 1, "U64": 8, "F32": 4}
KEY = np.dtype([("high", ">u8"), ("low", ">u8")])

Spec = Mapping[str, Any]  # what determines an entry besides its content; JSON


def entry_keys(spec: Spec, contents: Iterable[str]) -> NDArray[Any]:
    """Return the xxh3-128 of `spec` and each content, a digest or a text: (n,) of dtype KEY."""
    return encoded_keys(spec, (content.encode() for content in contents))


def encoded_keys(spec: Spec, contents: Iterable[bytes]) -> NDArray[Any]:
    """Return `entry_keys` of contents in UTF-8."""
    start, digest = canonical(spec).encode() + b"\0", xxhash.xxh3_128_digest
    return np.frombuffer(b"".join([digest(start + content) for content in contents]), KEY)


@dataclass(frozen=True, slots=True)
class Shard:
    """Describes one file of `count` entries, each of `shape`.

    keys_at, sums_at, values_at: where keys, digests and values begin, in bytes from the file's start.
    first_row: row of the first entry among those of all shards.
    """

    folder: Path
    name: str
    spec: Spec
    shape: tuple[int, ...]
    count: int
    keys_at: int
    sums_at: int
    values_at: int
    first_row: int

    @property
    def path(self) -> Path:
        return self.folder / self.name


class CacheWriter:
    """Writes entries of one `spec` as shards. If the `with` block raises, the unfinished shard is not written."""

    def __init__(self, folder: Path, spec: Spec, shard_bytes: int = SHARD_BYTES) -> None:
        self.folder, self.spec, self.shard_bytes = folder, spec, shard_bytes
        self._pending: list[tuple[np.void, NDArray[np.float32]]] = []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, key: np.void, value: NDArray[np.float32]) -> None:
        """Add one entry. key: of dtype KEY; value: float32. Raises DataError: when a shard cannot be written."""
        if self._pending and self._pending[0][1].shape != value.shape:
            self.flush()
        self._pending.append((key, np.array(value, np.float32)))
        if len(self._pending) * value.nbytes >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write the pending entries as a shard: to a temporary file, which is flushed and renamed."""
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
            _write_whole(self.folder / name, save(tensors, {"format": FORMAT, "spec": canonical(self.spec)}))
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


def open_shards(folder: Path) -> list[Shard]:
    """Read the headers of all shards, in the order of their names. Hidden files are skipped."""
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors") and name[0] != ".")  # noqa: PTH208 - glob is slow
    except OSError:  # none yet
        names = []
    with ThreadPoolExecutor(SHARDS_AT_ONCE) as pool:  # a network file system answers many requests at once
        found = list(pool.map(_open_shard, [folder / name for name in names]))
    specs: dict[str, Spec] = {}
    shards, first_row = [], 0
    for shard in found:  # many thousands of shards share a few specs
        spec = specs.setdefault(canonical(shard.spec), shard.spec)
        shards.append(replace(shard, spec=spec, first_row=first_row))
        first_row += shard.count
    return shards


def _open_shard(path: Path) -> Shard:
    """Read a shard's header, which must cover every byte of the file."""
    try:
        with path.open("rb", buffering=0) as file:
            head = file.read(HEAD_BYTES)
            start = 8 + int.from_bytes(head[:8], "little")
            if start > len(head):
                head += file.read(min(start - len(head), MOST_HEADER_BYTES))
            header, size = json.loads(head[8:start]), os.fstat(file.fileno()).st_size
        metadata = header.pop("__metadata__", {})
        if metadata.get("format") != FORMAT:
            raise DataError(
                f"{path}: its format is {metadata.get('format')!r}, needed {FORMAT}; give a folder that "
                "vpred-data encode filled"
            )
        count, *shape = header["values"]["shape"]
        kinds = {"keys": ("U8", [count, 16]), "xxh3": ("U64", [count]), "values": ("F32", [count, *shape])}
        if {name: (entry["dtype"], entry["shape"]) for name, entry in header.items()} != kinds:
            raise ValueError("it does not hold one key, one xxh3 and one value for each entry")
        places, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = entry["data_offsets"]
            if begin != end or stop - begin != ITEM_BYTES[entry["dtype"]] * math.prod(entry["shape"]):
                raise ValueError(f"its {name} are at another place than the header declares")
            places[name], end = start + begin, stop
        if start + end != size:
            raise ValueError(f"it has {size} bytes, but its header declares {start + end}")
        spec = json.loads(metadata["spec"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: damaged ({error}); {remedy(path.parent)}") from None
    return Shard(path.parent, path.name, spec, tuple(shape), count, places["keys"], places["xxh3"], places["values"], 0)


def read_at(path: Path, offset: int, into: NDArray[Any]) -> None:
    """Fill contiguous memory from byte `offset` of a shard. Raises DataError: when it cannot be read in full."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(offset)
            whole = file.readinto(into.view(np.uint8).data) == into.nbytes
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); {remedy(path.parent)}") from None
    if not whole:
        raise DataError(f"{path}: was cut off while it was in use; {remedy(path.parent)}")


def remedy(folder: Path) -> str:
    """Return the advice for a damaged shard."""
    return f"remove this file and fill {folder} again with vpred-data encode"


def canonical(spec: Spec) -> str:
    """Return a spec as text. Equal specs give equal text."""
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
