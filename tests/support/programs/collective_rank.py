"""One rank of the contract test: prints a line of JSON for each check that fails, and `done` at the end.

Arguments: what to do, `contract` or `hang` (rank 1 stops answering), and the timeout in seconds.
"""

import json
import os
import sys
import time

import numpy as np

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.process import die_with_parent
from vpred_train import runtime
from vpred_train.distributed import collectives
from vpred_train.distributed.collectives import COLLECTIVES, Collective, make_collective
from vpred_train.distributed.flat_arrays import FlatArrays, bounds_of


def values_of(rank: int, size: int) -> np.ndarray:
    return np.random.default_rng(100 + rank).standard_normal(size).astype(np.float32)


def check(what: str, found: object, expected: object) -> None:
    same = np.allclose(found, expected, rtol=1e-6, atol=1e-6) if isinstance(expected, np.ndarray) else found == expected
    if not same:
        print(json.dumps({"what": what, "found": str(found), "expected": str(expected)}), flush=True)


def contract(collective: Collective) -> None:
    collectives.MAX_BYTES = 1000
    rank, world_size = collective.rank, collective.world_size
    ranks = range(world_size)
    for size in (1, 2, 7, 1000, 300_001, 1_300_003):
        total = np.sum([values_of(each, size).astype(np.float64) for each in ranks], axis=0)
        own = values_of(rank, size)
        reduced = own.copy()
        collective.sum_(reduced)
        check(f"sum of {size}", reduced, total)
        bounds = bounds_of(size, world_size)
        begin, end = bounds[rank], bounds[rank + 1]
        parts = np.split(own, sorted({size // 3, size // 2, min(5, size)}))  # empty ones among them
        share = collective.reduce_scatter_sum_(FlatArrays(parts), bounds)
        check(f"share of {size}", share[0 : end - begin], total[begin:end])
        others = np.arange(size)[(np.arange(size) < begin) | (np.arange(size) >= end)]
        check(f"the others' ranges of {size}", own[others], values_of(rank, size)[others])
        check(f"own range of {size}, in place", own[begin:end], total[begin:end])
        gathered = np.full(size, np.nan, np.float32)
        gathered[begin:end] = total[begin:end]
        collective.all_gather_(gathered, bounds)
        check(f"gathered {size}", gathered, total)
    for yes in ranks:
        check(f"rank {yes} says yes", collective.any(rank == yes), True)
    check("nobody says yes", collective.any(False), False)
    for root in ranks:
        check(f"broadcast from {root}", collective.broadcast_object({"rank": rank}, root), {"rank": root})
        check(f"nothing from {root}", collective.broadcast_object(None if rank == root else "ignored", root), None)
    check("gathered objects", collective.allgather_object([rank, "x" * rank]), [[each, "x" * each] for each in ranks])
    for root in ranks:  # several messages each
        long = {"text": "ü" * 700, "values": values_of(root, 1000)}
        found = collective.broadcast_object(long if rank == root else None, root)
        check(f"long value from {root}", found["values"], long["values"])
        check(f"long text from {root}", found["text"], long["text"])
    objects = collective.allgather_object([values_of(rank, 0), values_of(rank, 300_001 * rank)])
    for each, (empty, long) in zip(ranks, objects, strict=True):  # lengths differ; some need several pieces
        check(f"empty array of {each}", empty.shape, (0,))
        check(f"array of {each}", long, values_of(each, 300_001 * each))
    collective.barrier()


def refuse_pickles() -> None:
    """mpi4py's methods for objects end the rank."""
    from mpi4py import MPI

    def refuse(*arguments: object) -> None:
        raise TypeError("something was pickled")

    MPI.pickle.__init__(refuse, refuse)


def main(what: str, timeout_s: str) -> None:
    identity = runtime.identify()
    accelerator = ACCELERATORS["cpu"]
    kind = accelerator.collective_under(identity.launcher)
    if kind == "mccl":
        die_with_parent(os.getppid())
        runtime.start(accelerator, identity, identity.local_rank, None)
    if identity.launcher == "none":
        collective = make_collective(kind, identity.world_size)
    else:
        collective = COLLECTIVES[kind](float(timeout_s))  # also for a single rank
    if kind == "mpi4py" and identity.launcher != "none":
        refuse_pickles()
    check("rank", (collective.rank, collective.world_size), (identity.rank, identity.world_size))
    if what == "hang":
        if collective.rank == 1:
            time.sleep(60)
        collective.barrier()
    contract(collective)
    collective.close()
    print(type(collective).__name__, "done", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
