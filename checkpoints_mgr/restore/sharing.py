"""Whole tensors, which all ranks want alike, on shared disks: each rank reads a share of them and passes it on."""

from collections.abc import Iterator, Sequence
from itertools import accumulate, zip_longest
from pathlib import Path

import numpy as np

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.disk.reading import Wanted, plan_local_reads, read_local
from checkpoints_mgr.state import Parts

# Orbax, where one replica reads and broadcasts, took 0.79 of the speed of direct reads on 2 slices, 1.55 times on 4 and
# 4.93 on 32 (its maximizing_performance.ipynb, 70 G parameters).
MIN_HOSTS = 4
BUFFER_BYTES = 32 << 20  # for what all ranks together pass on at a time
ITEM_BYTES = 4

Share = dict[str, list[Wanted]]


def read_share(comm: Communicator, directory: Path, manifest: Manifest, parts: Parts) -> list[Share]:
    """Fill this rank's share of what all want; returns all shares, for `pass_on`. Errors as of `read_parts`."""
    shares = shares_of(manifest, plan_local_reads(manifest, parts), comm.world_size)
    read_local(directory, manifest, shares[comm.rank])
    return shares


def shares_of(manifest: Manifest, wanted: Share, world_size: int) -> list[Share]:
    """By rank, what it is to read of what all want, the same on all ranks: whole chunks, so that each is read once. No
    rank has more than the mean and a chunk."""
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
    """By all ranks, each of which has filled its share: fill the others'."""
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
    """The share's memory in order, as much at a time; the last are fewer bytes."""
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
    """Each memory of a window and its byte in the buffer, where the window begins at this item."""
    place = item * ITEM_BYTES
    for memory in window:
        yield memory, place
        place += len(memory)
