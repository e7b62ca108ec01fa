"""Restores by broadcast: each rank reads a share of the replicated tensors from shared disks and sends it to all."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest
from pathlib import Path

import numpy as np

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.disk.reading import Wanted, plan_local_reads, read_local
from checkpoints_mgr.state import Parts

# Orbax, where one replica reads and broadcasts, reached 0.79 times the speed of direct reads on 2 slices, 1.55 times on
# 4 and 4.93 times on 32 (its maximizing_performance.ipynb, 70 G parameters).
MIN_HOSTS = 4
BUFFER_BYTES = 32 << 20  # holds what all ranks together send at a time
ITEM_BYTES = 4

Share = dict[str, list[Wanted]]


def read_share(comm: Communicator, directory: Path, manifest: Manifest, parts: Parts) -> list[Share]:
    """Fill this rank's share of what all ranks want. Return all shares, for `pass_on`. Raises as `read_parts`."""
    shares = shares_of(manifest, plan_local_reads(manifest, parts), comm.world_size)
    read_local(directory, manifest, shares[comm.rank])
    return shares


def shares_of(manifest: Manifest, wanted: Share, world_size: int) -> list[Share]:
    """Return what each rank reads of what all ranks want, by rank; the result is the same on all ranks.

    A share consists of complete chunks, so that each chunk is read once. No rank has more than the mean plus one chunk.
    """
    total_bytes = sum(len(memory) for reads in wanted.values() for _, memory in reads)
    shares: list[Share] = [{} for _ in range(world_size)]
    position = 0
    for entry in manifest.files:
        chunk, rank = -1, 0
        for start, whole in wanted.get(entry.name, []):
            offset, rest = start, whole
            while rest:
                if offset // entry.chunk_bytes != chunk:
                    chunk, rank = offset // entry.chunk_bytes, position * world_size // total_bytes
                memory = rest[: (chunk + 1) * entry.chunk_bytes - offset]
                shares[rank].setdefault(entry.name, []).append((offset, memory))
                offset, rest, position = offset + len(memory), rest[len(memory) :], position + len(memory)
    return shares


def pass_on(comm: Communicator, shares: Sequence[Share]) -> None:
    """Fill the other ranks' shares. All ranks call this after each has filled its local share."""
    buffer = np.empty(BUFFER_BYTES // ITEM_BYTES, np.float32)
    content = buffer.view(np.uint8).data
    most_bytes = BUFFER_BYTES // comm.world_size // ITEM_BYTES * ITEM_BYTES
    for windows in zip_longest(*(_windows(share, most_bytes) for share in shares), fillvalue=[]):
        bounds = [0, *accumulate(-(-sum(map(len, window)) // ITEM_BYTES) for window in windows)]
        for memory, place in _placed(windows[comm.rank], bounds[comm.rank]):
            content[place : place + len(memory)] = memory
        comm.all_gather_(buffer[: bounds[-1]], bounds)
        for rank, window in enumerate(windows):
            for memory, place in _placed(window, bounds[rank]) if rank != comm.rank else ():
                memory[:] = content[place : place + len(memory)]


def _windows(share: Share, most_bytes: int) -> Iterator[list[memoryview]]:
    """Yield the share's memory in order, `most_bytes` at a time; the last window has fewer bytes."""
    window: list[memoryview] = []
    room_bytes = most_bytes
    for _, memory in (read for reads in share.values() for read in reads):
        rest = memory
        while rest:
            window.append(rest[:room_bytes])
            rest, room_bytes = rest[room_bytes:], room_bytes - len(window[-1])
            if not room_bytes:
                yield window
                window, room_bytes = [], most_bytes
    if window:
        yield window


def _placed(window: Sequence[memoryview], item: int) -> Iterator[tuple[memoryview, int]]:
    """Yield each memory of a window with its offset in bytes in the buffer. The window begins at float32 `item`."""
    place = item * ITEM_BYTES
    for memory in window:
        yield memory, place
        place += len(memory)
