"""One rank of checkpoint.py, under mpirun. Prints from rank 0 one JSON object with the times of each repeat."""

import argparse
import ctypes
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_mgr import CheckpointManager, FlatShard, Retention, Segment, State
from checkpoints_mgr.disk.reading import open_step, plan_reads
from checkpoints_mgr.state import wanted_parts
from vpred_train.distributed.collectives import Collective, make_collective
from vpred_train.distributed.flat_arrays import bounds_of

TENSORS = 200
BLOCK_BYTES = 16 << 20
REST_S = 0.5
TRAINING_STEP_S = 0.1
WINDOW_BYTES = 256 << 20  # beyond the caches, and little beside the state
START_WRITE_BACK = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h
libc = ctypes.CDLL(None, use_errno=True)


def make_state(size_bytes: int, rank: int, world_size: int) -> State:
    """A quarter of the bytes weights, whole on each rank; the rest an average and two moments, in shards."""
    numel = size_bytes // 16 // TENSORS
    names = {f"block.{number}.weight": (numel,) for number in range(TENSORS)}
    low, high = bounds_of(numel * TENSORS, world_size)[rank : rank + 2]
    segments = []
    for number, name in enumerate(names):
        first, last = (min(max(bound - number * numel, 0), numel) for bound in (low, high))
        if first < last:
            segments.append(Segment(name, first, last, number * numel + first - low))
    rng = np.random.default_rng(0)
    weights = rng.standard_normal(numel * TENSORS, np.float32)
    whole = {f"model/{name}": weights[n * numel : (n + 1) * numel] for n, name in enumerate(names)}
    shards = {each: FlatShard(weights[low:high] + 1, names, segments) for each in ("ema", "adam_m", "adam_v")}
    return State(whole, {}, shards)


def timed(collective: Collective, action: Callable[[], Any]) -> float:
    """Seconds until the last rank is done. What others have left to write is written first, and the disk comes to
    rest."""
    os.sync()
    time.sleep(REST_S)
    collective.barrier()
    started_s = time.perf_counter()
    action()
    collective.barrier()
    return time.perf_counter() - started_s


def blocks(content: memoryview, size_bytes: int) -> Iterator[memoryview]:
    """size_bytes of the window, over and over, a block at a time."""
    for start in range(0, size_bytes, BLOCK_BYTES):
        low = start % len(content)
        yield content[low : low + min(BLOCK_BYTES, size_bytes - start)]


def write_plainly(path: Path, content: memoryview, size_bytes: int, early: bool) -> None:
    """As dd conv=fsync does it; `early`: the device begins with each block as soon as it is written."""
    with path.open("xb", buffering=0) as stream:
        at = 0
        for block in blocks(content, size_bytes):
            written = stream.write(block)
            if early:
                libc.sync_file_range(
                    stream.fileno(), ctypes.c_int64(at), ctypes.c_int64(written), ctypes.c_uint(START_WRITE_BACK)
                )
            at += written
        os.fsync(stream.fileno())


def read_plainly(path: Path, content: memoryview) -> None:
    with path.open("rb", buffering=0) as stream:
        for block in blocks(content, path.stat().st_size):
            stream.readinto(block)


def copy_plainly(content: memoryview, copy: memoryview, size_bytes: int) -> None:
    """At memory's speed, block by block."""
    for source, target in zip(blocks(content, size_bytes), blocks(copy, size_bytes), strict=True):
        target[:] = source


def forget(*paths: Path) -> None:
    """Take clean files out of the page cache, so that reading them asks the device."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def rotated(names: list[str], turns: int) -> list[str]:
    """Each is first in its turn."""
    first = turns % len(names)
    return names[first:] + names[:first]


def sizes_of(state: State) -> tuple[list[int], list[int]]:
    """Bytes of the whole tensors, and of the shards."""
    return [array.nbytes for array in state.whole.values()], [each.values.nbytes for each in state.shards.values()]


class Measured(dict[str, list[float]]):
    """Figures by name, one of each repeat."""

    def note(self, name: str, value: float) -> None:
        self.setdefault(name, []).append(value)


def measure(collective: Collective, folder: Path, size_bytes: int, repeats: int, others: bool) -> Measured:
    """All figures of this rank; times are the same on all."""
    state = make_state(size_bytes, collective.rank, collective.world_size)
    # Nothing is removed: blocks that were given up a moment ago take new bytes several times faster than others do.
    manager, found = CheckpointManager(folder / "ours", collective, Retention(last=1 << 30)), Measured()
    whole_bytes, shard_bytes = map(sum, sizes_of(state))
    before_bytes = peak_bytes()
    manager.start_save(0, state)
    manager.wait()
    found.note("extra_bytes", peak_bytes() - before_bytes)
    found.note("own_bytes", shard_bytes + whole_bytes // collective.world_size)
    for repeat in range(repeats):
        measure_once(collective, folder, state, manager, repeat, found)
        if others:
            measure_mindspore(collective, folder / f"theirs-{repeat}", size_bytes, found)
    return found


def measure_once(
    collective: Collective, folder: Path, state: State, manager: CheckpointManager, repeat: int, found: Measured
) -> None:
    """Each of ours beside the same of the machine. The writes take turns in who is first."""
    own_bytes = int(found["own_bytes"][0])
    # A multiple of the block, so that blocks do not straddle its end.
    window = np.ones(min(WINDOW_BYTES, -(-own_bytes // BLOCK_BYTES) * BLOCK_BYTES), np.uint8)
    copy = np.zeros_like(window)
    step = 2 * repeat + 1
    plain = {name: folder / f"{name}-{repeat}-{collective.rank}" for name in ("plain_write_s", "early_write_s")}
    writes: dict[str, Callable[[], Any]] = {
        name: partial(write_plainly, path, window.data, own_bytes, name == "early_write_s")
        for name, path in plain.items()
    } | {"save_s": lambda: manager.save(step, state)}
    for name in rotated(list(writes), repeat):
        found.note(name, timed(collective, writes[name]))
    found.note("copy_s", timed(collective, lambda: copy_plainly(window.data, copy.data, own_bytes)))
    manager.start_save(step + 1, state)
    while (saved := manager.poll()) is None:
        time.sleep(TRAINING_STEP_S)
    found.note("stage_s", saved.stage_seconds)
    found.note("stall_s", saved.stall_seconds)
    found.note("background_s", saved.seconds)
    needed = [saved.path / name for name in plan_reads(open_step(saved.path), wanted_parts(state))]
    reads: dict[str, Callable[[], Any]] = {
        "plain_read": lambda: read_plainly(plain["plain_write_s"], copy.data),
        "files_read": lambda: [read_plainly(file, copy.data) for file in needed],
        "restore": lambda: manager.restore(state),
    }
    for name in rotated(list(reads), repeat):
        forget(plain["plain_write_s"], *saved.path.iterdir())
        found.note(f"{name}_s", timed(collective, reads[name]))
    found.note("plain_read_bytes", own_bytes)
    found.note("files_read_bytes", sum(file.stat().st_size for file in needed))
    found.note("restore_bytes", sum(map(sum, sizes_of(state))))


def peak_bytes() -> int:
    """The most memory that this process had so far."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def measure_mindspore(collective: Collective, path: Path, size_bytes: int, found: Measured) -> None:
    """ms.save_checkpoint: rank 0 writes everything, given to it whole; once as it is, once flushed by us."""
    items = []
    if collective.rank == 0:
        import mindspore

        values = np.ones(size_bytes // 16 // TENSORS, np.float32)
        items = [{"name": f"t{number}", "data": mindspore.Tensor(values)} for number in range(4 * TENSORS)]

    def save(name: str) -> None:
        if collective.rank == 0:
            file = path.with_name(f"{path.name}-{name}.safetensors")
            mindspore.save_checkpoint(items, str(file), format="safetensors")
            if name == "mindspore_fsync_s":
                descriptor = os.open(file, os.O_RDONLY)
                os.fsync(descriptor)
                os.close(descriptor)

    for name in ("mindspore_s", "mindspore_fsync_s"):
        found.note(name, timed(collective, partial(save, name)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--megabytes", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--mindspore", action="store_true")
    options = parser.parse_args()
    collective = make_collective("mpi4py", options.world_size)
    found = measure(collective, options.folder, options.megabytes * 10**6, options.repeats, options.mindspore)
    own_bytes = collective.allgather_object(found["own_bytes"][0])
    if collective.rank == 0:
        print(json.dumps({**found, "own_bytes": own_bytes}))
    collective.close()


if __name__ == "__main__":
    main()
