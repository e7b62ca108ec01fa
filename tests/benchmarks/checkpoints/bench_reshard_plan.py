"""The manifest of 5 G parameters saved by 64 ranks, and the plan of each of 48 ranks to read its own part.

    .venv/bin/python tests/benchmarks/checkpoints/bench_reshard_plan.py

Weights whole, an average and two moments in shards, 1500 tensors. No data is written: a manifest alone is enough. Ends
with how far below what is asked: 1 MB for the manifest, 50 ms of processor time for the plan of the
slowest rank.
"""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np

from checkpoints_mgr import FlatShard, Segment, State
from checkpoints_mgr.disk.digests import chunk_bytes_of
from checkpoints_mgr.disk.manifest import FileEntry, Manifest, Piece, Placement, from_bytes, to_bytes
from checkpoints_mgr.disk.reading import plan_reads
from checkpoints_mgr.save.balance import shares
from checkpoints_mgr.state import Parts, Range, TensorSpec, wanted_parts

PARAMETERS, TENSORS = 5_000_000_000, 1500
WRITERS, READERS = 64, 48
SHARDED = ("adam_m", "adam_v", "ema")
MANIFEST_BYTES, PLAN_S = 1_000_000, 0.050


def shapes() -> dict[str, tuple[int, int]]:
    """As uneven as a UNet's: of a thousand elements to eighty million."""
    sizes = np.geomspace(1e3, 8e7, TENSORS)
    rows = np.maximum(1, sizes * (PARAMETERS / sizes.sum()) // 1000).astype(int)
    return {f"unet.block.{number}.weight": (int(count), 1000) for number, count in enumerate(rows)}


def flat_ranges(named: dict[str, tuple[int, int]], world_size: int) -> list[list[tuple[str, int, int]]]:
    """By rank: (tensor, low, high) of its contiguous share of all elements."""
    numels = {name: shape[0] * shape[1] for name, shape in named.items()}
    total = sum(numels.values())
    bounds = [total * rank // world_size for rank in range(world_size + 1)]
    result = []
    for first, last in pairwise(bounds):
        own, start = [], 0
        for name, numel in numels.items():
            low, high = (min(max(bound - start, 0), numel) for bound in (first, last))
            if low < high:
                own.append((name, low, high))
            start += numel
        result.append(own)
    return result


def manifest() -> Manifest:
    """As 64 ranks would have committed it: the weights balanced over them, each of the shards its own range."""
    named = shapes()
    specs = [TensorSpec(f"model/{name}", "F32", shape) for name, shape in named.items()]
    flat = flat_ranges(named, WRITERS)
    loads = [12 * sum(high - low for _, low, high in own) for own in flat]
    written: list[list[Range]] = shares(specs, loads)
    pieces: dict[str, list[Piece]] = {}
    files: list[FileEntry] = []
    for component in ("model", *SHARDED):
        for rank in range(WRITERS):
            ranges = [
                Range(TensorSpec(f"{component}/{name}", "F32", named[name]), low, high)
                for name, low, high in flat[rank]
            ]
            offset = 4096
            for part in written[rank] if component == "model" else ranges:
                pieces.setdefault(part.spec.name, []).append(Piece(part.low, part.high, len(files), offset))
                offset += part.size_bytes
            chunk_bytes = chunk_bytes_of(offset)
            digests = tuple(f"{number:016x}" for number in range(-(-offset // chunk_bytes)))
            name = f"{component}-{rank:05d}-of-{WRITERS:05d}.safetensors"
            files.append(FileEntry(name, offset, rank, 4096, chunk_bytes, digests))
    tensors = {
        name: Placement(
            TensorSpec(name, "F32", named[name.split("/", 1)[1]]), tuple(sorted(own, key=lambda each: each.low))
        )
        for name, own in pieces.items()
    }
    return Manifest("0" * 32, 1, 0, WRITERS, {}, {}, {}, tuple(files), tensors)


def template(rank: int) -> Parts:
    """What a rank of 48 wants back: all weights and its own shards. The memory is reserved and never touched."""
    named = shapes()
    own = flat_ranges(named, READERS)[rank]
    segments, start = [], 0
    for name, low, high in own:
        segments.append(Segment(name, low, high, start))
        start += high - low
    everything = np.empty(max(rows * columns for rows, columns in named.values()), np.float32)  # views of one
    whole = {
        f"model/{name}": everything[: rows * columns].reshape(rows, columns) for name, (rows, columns) in named.items()
    }
    values = np.empty(start, np.float32)
    return wanted_parts(State(whole, {}, {each: FlatShard(values, named, segments) for each in SHARDED}))


def seconds(action: Callable[[], Any], repeats: int = 7) -> float:
    times = []
    for _ in range(repeats):
        started_s = time.process_time()
        action()
        times.append(time.process_time() - started_s)
    return statistics.median(times)


def main() -> None:
    made = manifest()
    content = to_bytes(made)
    read = from_bytes(content, "here")  # proves that the pieces make up each tensor
    assert read.tensors == made.tensors
    plans = []
    for rank in (0, READERS // 2, READERS - 1):
        parts = template(rank)
        plan = plan_reads(read, parts)
        planned = sum(len(memory) for reads in plan.values() for _, memory in reads)
        assert planned == sum(part.size_bytes for part, _ in parts)
        plans.append(seconds(lambda parts=parts: plan_reads(read, parts)))  # type: ignore[misc]
        print(f"rank {rank} of {READERS}: {len(parts)} ranges, {len(plan)} files, plan {1000 * plans[-1]:.1f} ms")
    print(f"{PARAMETERS / 1e9:g} G parameters, {WRITERS} ranks: manifest {len(content)} bytes")
    print(f"made in {1000 * seconds(lambda: to_bytes(made)):.0f} ms, read and checked in "
          f"{1000 * seconds(lambda: from_bytes(content, 'here')):.0f} ms")  # fmt: skip
    print(f"reshard_manifest_bytes_vs_1_mb ratio {MANIFEST_BYTES / len(content):.2f}")
    print(f"reshard_plan_vs_50_ms ratio {PLAN_S / max(plans):.2f}")


if __name__ == "__main__":
    main()
