"""Reads a committed step and checks every byte. It uses no collectives, since the command line uses it too."""

import logging
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.digests import ChunkHasher
from checkpoints_mgr.disk.layout import MANIFEST, QUARANTINE, step_of
from checkpoints_mgr.disk.manifest import FileEntry, Manifest, from_bytes
from checkpoints_mgr.disk.tensor_file import byte_view
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.state import DTYPES, Parts, Range

logger = logging.getLogger(__name__)

READ_THREADS = 4
BLOCK_BYTES = 512 << 10  # of one read: a larger block leaves the cache before it is hashed, and the disk idles

Wanted = tuple[int, memoryview]  # the bytes' offset in a file, and the memory to fill with them


def read_manifest(directory: Path) -> bytes:
    """Return the manifest's bytes. Raises CorruptCheckpointError: when a committed step has none."""
    path = directory / MANIFEST
    try:
        check_regular(path)
        return storage.read_bytes(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    except NotADirectoryError as error:
        raise CorruptCheckpointError(f"{directory} is not a directory") from error


def check_regular(path: Path) -> None:
    """Check that the path is a regular file.

    Raises CorruptCheckpointError: when something else has the name. Raises OSError: when it cannot be looked at.
    """
    if not storage.is_regular(path):
        raise CorruptCheckpointError(f"{path} is not a regular file", path.name)


def _missing(path: Path) -> CheckpointError:
    """Return the error for a missing file.

    The file's step is corrupt, unless the step's directory is gone too: retention removes a step in one rename.
    """
    if not storage.is_occupied(path.parent):
        return CheckpointError(f"{path.parent} was removed while it was read")
    return CorruptCheckpointError(f"{path} is missing", path.name)


def lease(directory: Path) -> AbstractContextManager[bool]:
    """Keep retention from removing the step while the context lasts."""
    return storage.locked(directory / MANIFEST, exclusive=False)


def check_step(directory: Path, manifest: Manifest) -> None:
    """Run the cheap check: the manifest is this step's, and every local file exists and has its size.

    Raises CorruptCheckpointError: when the check fails.
    """
    if step_of(directory.name) not in (None, manifest.step):
        raise CorruptCheckpointError(f"{directory / MANIFEST} is of step {manifest.step}")
    for entry in manifest.local_files:
        path = directory / entry.name
        try:
            check_regular(path)
            size_bytes = storage.file_size(path)
        except FileNotFoundError as error:
            raise _missing(path) from error
        if size_bytes != entry.size_bytes:
            raise CorruptCheckpointError(f"{path} has {size_bytes} bytes, the manifest says {entry.size_bytes}")


def open_step(directory: Path) -> Manifest:
    """Return the manifest of a step, after its digest and the file sizes were checked.

    Raises CorruptCheckpointError: when they are wrong. Raises CheckpointError: as `from_bytes`, or when the step was
    removed meanwhile.
    """
    manifest = from_bytes(read_manifest(directory), str(directory / MANIFEST))
    check_step(directory, manifest)
    return manifest


def verify_files(directory: Path, manifest: Manifest) -> None:
    """Run the full check: every byte against its digest, with one block of each file in memory at a time.

    Raises CorruptCheckpointError: when the check fails.
    """
    _each_file(lambda entry: verify_file(directory, entry), manifest.local_files)


def verify_between(directory: Path, manifest: Manifest) -> None:
    """Check the chunks of the local files that hold no element of a tensor. A full restore leaves them unread.

    Raises CorruptCheckpointError: when the check fails.
    """
    held: dict[int, set[int]] = defaultdict(set)
    for placement in manifest.tensors.values():
        item_bytes = DTYPES[placement.spec.dtype].itemsize
        for piece in placement.pieces:
            chunk_bytes = manifest.files[piece.file].chunk_bytes
            stop = piece.offset + (piece.high - piece.low) * item_bytes
            held[piece.file].update(range(piece.offset // chunk_bytes, -(-stop // chunk_bytes)))
    for number, entry in enumerate(manifest.files):
        rest = sorted(set(range(len(entry.digests))) - held[number])
        if rest and entry.node == manifest.node:
            _read_chunks(directory, entry, [], rest)


def verify_file(directory: Path, entry: FileEntry) -> None:
    """Check every byte of one file. Raises CorruptCheckpointError, which names the file: when the check fails."""
    _read_chunks(directory, entry, [], range(len(entry.digests)))


def read_parts(directory: Path, manifest: Manifest, parts: Parts) -> None:
    """Fill every array of `parts`, each the writable, contiguous elements of its range.

    Only the chunks that hold wanted bytes are read, and each is checked.
    Raises CorruptCheckpointError: when bytes differ from what was committed.
    Raises CheckpointError: when the step holds no such tensor, or another node has it.
    """
    read_local(directory, manifest, plan_local_reads(manifest, parts))


def read_local(directory: Path, manifest: Manifest, wanted: dict[str, list[Wanted]]) -> None:
    """Fill the wanted memory from the local files. Raises CorruptCheckpointError: when bytes differ."""
    entries = [entry for entry in manifest.local_files if entry.name in wanted]
    _each_file(lambda entry: read_wanted(directory, entry, wanted[entry.name]), entries)


def read_range(directory: Path, manifest: Manifest, part: Range) -> NDArray[Any]:
    """Read the elements of a range, 1-D, and check them. Raises as `read_parts`."""
    values = np.empty(part.high - part.low, DTYPES[part.spec.dtype])
    read_parts(directory, manifest, [(part, values)])
    return values


@dataclass(frozen=True)
class Checkpoint:
    """Gives access to the tensors of a step. Each is read and verified on request."""

    directory: Path
    manifest: Manifest

    @classmethod
    def open(cls, directory: Path) -> Self:
        """Open a step. Raises as `open_step`."""
        return cls(directory, open_step(directory))

    def names(self, component: str) -> list[str]:
        """Return the names of the component's tensors, without the component's prefix.

        Raises CheckpointError: when there is no such component.
        """
        if component not in self.manifest.components:
            raise CheckpointError(
                f"{self.directory} has no component {component}; it has: {', '.join(self.manifest.components)}"
            )
        specs = (placement.spec for placement in self.manifest.tensors.values())
        return [spec.key for spec in specs if spec.component == component]

    def read(self, component: str, name: str) -> NDArray[Any]:
        """Return a new array of the full tensor, whichever ranks have written it. Raises as `read_parts`."""
        spec = self.manifest.tensors[f"{component}/{name}"].spec
        return read_range(self.directory, self.manifest, Range(spec, 0, spec.numel)).reshape(spec.shape)


def plan_reads(manifest: Manifest, parts: Parts) -> dict[str, list[Wanted]]:
    """Return file name -> the reads from it, in the file's order.

    Raises CheckpointError: when there is no such tensor, or it has another dtype or shape.
    """
    wanted: dict[str, list[Wanted]] = defaultdict(list)
    for part, values in parts:
        placement = manifest.tensors.get(part.spec.name)
        if placement is None or placement.spec != part.spec:
            found = "nothing" if placement is None else f"{placement.spec.dtype} {list(placement.spec.shape)}"
            raise CheckpointError(
                f"the checkpoint holds {found} for {part.spec.name}, needed {part.spec.dtype} {list(part.spec.shape)}"
            )
        item_bytes = DTYPES[part.spec.dtype].itemsize
        view = byte_view(values, part.spec.dtype)
        pieces = placement.pieces
        first = bisect_right(pieces, part.low, key=attrgetter("high")) if part.low else 0
        for index in range(first, len(pieces)):
            piece = pieces[index]
            if piece.low >= part.high:
                break
            low, high = max(piece.low, part.low), min(piece.high, part.high)
            memory = view[(low - part.low) * item_bytes : (high - part.low) * item_bytes]
            offset = piece.offset + (low - piece.low) * item_bytes
            wanted[manifest.files[piece.file].name].append((offset, memory))
    for reads in wanted.values():
        reads.sort(key=lambda read: read[0])
    return wanted


def plan_local_reads(manifest: Manifest, parts: Parts) -> dict[str, list[Wanted]]:
    """Plan as `plan_reads`. Raises CheckpointError also: when another node has the file."""
    wanted = plan_reads(manifest, parts)
    for entry in manifest.files:
        if entry.node != manifest.node and entry.name in wanted:
            raise CheckpointError(f"{entry.name} is on the disks of node {entry.node}; this is {manifest.node}")
    return wanted


def read_wanted(directory: Path, entry: FileEntry, wanted: Sequence[Wanted]) -> None:
    """Fill the wanted memory from one file; `wanted` is in the file's order.

    Raises CorruptCheckpointError: when bytes differ.
    """
    chunks: set[int] = set()
    for offset, memory in wanted:
        chunks.update(range(offset // entry.chunk_bytes, (offset + len(memory) - 1) // entry.chunk_bytes + 1))
    if chunks:
        _read_chunks(directory, entry, wanted, sorted(chunks))


def _read_chunks(directory: Path, entry: FileEntry, wanted: Sequence[Wanted], chunks: Sequence[int]) -> None:
    """Read chunks and check each digest. Wanted bytes go directly to their memory, the others to a scratch block."""
    path, scratch = directory / entry.name, memoryview(bytearray(min(BLOCK_BYTES, entry.size_bytes)))
    try:
        reader = storage.Reader(path)
    except FileNotFoundError as error:
        raise _missing(path) from error
    with reader:
        for first, last in _runs(chunks):
            start, stop = first * entry.chunk_bytes, min((last + 1) * entry.chunk_bytes, entry.size_bytes)
            hasher = ChunkHasher(entry.chunk_bytes)
            for _ in hasher.passing(_read_blocks(reader, start, stop, wanted, scratch)):
                pass
            for chunk, digest in enumerate(hasher.digests(), first):
                if digest != entry.digests[chunk]:
                    start = chunk * entry.chunk_bytes
                    stop = min(start + entry.chunk_bytes, entry.size_bytes)
                    raise CorruptCheckpointError(f"{path}: digest mismatch in bytes {start} to {stop}", entry.name)


def _runs(chunks: Sequence[int]) -> list[tuple[int, int]]:
    """Return the runs of consecutive numbers in sorted ones, as (first, last)."""
    breaks = [index for index in range(1, len(chunks)) if chunks[index] != chunks[index - 1] + 1]
    return [(chunks[low], chunks[high - 1]) for low, high in pairwise([0, *breaks, len(chunks)])]


def _read_blocks(
    reader: storage.Reader, start: int, stop: int, wanted: Sequence[Wanted], scratch: memoryview
) -> Iterator[memoryview]:
    """Yield bytes [start, stop) of the file, in order. Each block is valid until the next one is requested."""
    for block in range(start, stop, len(scratch)):
        end = min(block + len(scratch), stop)
        buffers = _buffers(block, end, wanted, scratch)
        if reader.read_into(buffers, block) != end - block:
            raise CorruptCheckpointError(f"{reader.path} ends before byte {end}", reader.path.name)
        yield from buffers


def _buffers(start: int, stop: int, wanted: Sequence[Wanted], scratch: memoryview) -> list[memoryview]:
    """Return the memory for bytes [start, stop): wanted memory for wanted bytes, scratch for the others."""
    buffers, position = [], start
    first = bisect_left(wanted, True, key=lambda read: read[0] + len(read[1]) > start)
    for offset, memory in wanted[first:]:
        if offset >= stop:
            break
        low, high = max(offset, start), min(offset + len(memory), stop)
        buffers += [scratch[position - start : low - start], memory[low - offset : high - offset]]
        position = high
    return [buffer for buffer in [*buffers, scratch[position - start : stop - start]] if buffer]


def _each_file(action: Any, entries: Sequence[FileEntry]) -> None:
    """Run the action on every file, several at a time, and raise the first error."""
    with ThreadPoolExecutor(READ_THREADS, thread_name_prefix="checkpoint-reader") as pool:
        for _ in pool.map(action, entries):
            pass


def quarantine(root: Path, directory: Path, fault: str, reason: str = "corrupt") -> None:
    """Move a step aside and keep it for inspection; one rank calls this. A failure (read-only root) is only logged."""
    logger.error("checkpoint %s is %s: %s", directory, reason, fault)
    utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = root / QUARANTINE / f"{directory.name}-{reason}-{utc}-{secrets.token_hex(2)}"
    try:
        storage.make_root(target.parent)
        storage.rename(directory, target)
        storage.sync_dir(target.parent)
        storage.sync_dir(root)
    except OSError as error:
        logger.warning("cannot move %s to quarantine: %s", directory, error)
    else:
        logger.error("moved to %s", target)
