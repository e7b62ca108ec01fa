"""Collectives of flat float32 arrays between ranks of one host: ours against a bare MPI_Allreduce of the same bytes.

    .venv/bin/python tests/benchmarks/training/bench_collective.py [--megabytes 1 16 64 256] [--ranks 2]

Theirs is cut into pieces of the size that turns out fastest in the same run. Both take turns on the same array, and
each ratio, theirs / ours in seconds, is of two neighbours in time; an operation takes as long as on its slowest rank.
`zero` is the two of a sharded step, reduce-scatter and all-gather, which
together move what an all-reduce does; each by itself moves half of it.
"""

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ranks import Rank, Ranks, as_rank

from vpred_train.distributed.flat_arrays import FlatArrays, blocks, bounds_of

PIECES_KIB = (64, 128, 256, 512, 1024, 2048, 4096, 16384, 65536, 262144)
SEARCH_REPEATS = 5
PAIRS_BYTES = 1 << 28  # so much is reduced by each side for one size, but at least MIN_PAIRS times
MIN_PAIRS, MAX_PAIRS = 7, 101


def seconds(rank: Rank, values: np.ndarray, operation: Callable[[], object]) -> float:
    """Of one call that all ranks begin together, on the slowest rank. Each has just written its values, as a graph has:
    what other cores changed last is slower to read."""
    values.fill(rank.collective.rank)
    rank.collective.barrier()
    started = time.perf_counter()
    operation()
    return max(rank.collective.allgather_object(time.perf_counter() - started))


def bare(values: np.ndarray, piece_elements: int) -> Callable[[], None]:
    """MPI_Allreduce in place, piece by piece."""
    from mpi4py import MPI

    def allreduce() -> None:
        for block in blocks(0, values.size, piece_elements):
            MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, values[block])

    return allreduce


def best_piece(rank: Rank, values: np.ndarray) -> tuple[int, dict[int, float]]:
    """The fastest piece in KiB, and the seconds of each."""
    found = {}
    for piece_kib in (each for each in PIECES_KIB if each * 1024 <= values.nbytes):
        operation = bare(values, piece_kib * 256)
        found[piece_kib] = min(seconds(rank, values, operation) for _ in range(SEARCH_REPEATS))
    return min(found, key=lambda each: found[each]), found


def measure(rank: Rank, megabytes: int) -> dict[str, Any]:
    """Seconds of both sides' turns for arrays of so many MiB."""
    collective = rank.collective
    size = megabytes << 18
    bounds = bounds_of(size, collective.world_size)
    values = np.empty(size, np.float32)
    flat = FlatArrays([values])
    operations: dict[str, Callable[[], object]] = {
        "sum": lambda: collective.sum_(values),
        "reduce_scatter": lambda: collective.reduce_scatter_sum_(flat, bounds),
        "all_gather": lambda: collective.all_gather_(values, bounds),
        "zero": lambda: (collective.reduce_scatter_sum_(flat, bounds), collective.all_gather_(values, bounds)),
    }
    piece_kib, search = best_piece(rank, values)
    theirs = bare(values, piece_kib * 256)
    pairs = int(np.clip(PAIRS_BYTES // values.nbytes, MIN_PAIRS, MAX_PAIRS))
    turns = {
        name: [(seconds(rank, values, ours), seconds(rank, values, theirs)) for _ in range(pairs)]
        for name, ours in operations.items()
    }
    return {"piece_kib": piece_kib, "search": search, "turns": turns}


def report(megabytes: int, found: dict[str, Any]) -> list[str]:
    """Print the figures of one size; its closing lines."""
    gigabytes = megabytes * 2**20 / 1e9
    tried = ", ".join(f"{piece} KiB {gigabytes / each:.2f}" for piece, each in found["search"].items())
    print(f"{megabytes} MiB: bare all-reduce, GB/s by piece: {tried}")
    closing = []
    for name, turns in found["turns"].items():
        ours, theirs = (statistics.median(each) for each in zip(*turns, strict=True))
        ratio = statistics.median(other / own for own, other in turns)
        print(
            f"{megabytes} MiB: {name} {1e3 * ours:.2f} ms ({gigabytes / ours:.2f} GB/s), bare all-reduce in pieces of "
            f"{found['piece_kib']} KiB {1e3 * theirs:.2f} ms ({gigabytes / theirs:.2f} GB/s)",
            flush=True,
        )
        closing.append(f"collective_{name}_{megabytes}mib ratio {ratio:.3f}")
    return closing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--ranks", type=int, default=2)
    arguments = parser.parse_args()
    closing = []
    with contextlib.closing(Ranks(__file__, arguments.ranks, cores_per_rank=1)) as ranks:
        for megabytes in arguments.megabytes:
            closing += report(megabytes, ranks.ask(megabytes))
    print("\n".join(closing))


if __name__ == "__main__":
    joined = as_rank()
    if joined is None:
        main()
    else:
        for request in joined[0].requests():
            joined[0].answer(measure(joined[0], request))
