"""Compares each collective with its exact result, and measures its bandwidth.

The values are small whole numbers, so that a sum is exact in any order of its terms.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn

from launcher.contract.accelerators import ComputeDtype
from vpred_train.arrays import FloatArray
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.device_collective import REDUCE_SCATTER, AllGather, AllReduce
from vpred_train.distributed.flat_arrays import FlatArrays, shard_bounds
from vpred_train.doctor.check import Item, Measured, left_out
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_host
from vpred_train.models.layers import COMPUTE_DTYPES

RUNS = 3
PERIOD = 97  # values count up to this, and start again
UNEVEN = 5  # elements that do not divide evenly among the ranks
SIZES_BYTES = (4 << 10, 1 << 20, 16 << 20)
GRAPH_SIZES_BYTES = (4 << 10, 1 << 20, 16 << 20, 128 << 20)
GRAPH_SIZES_BYTES_ON_CPU = (4 << 10, 1 << 20)
LEAST_GBS = 80.0  # between the NPUs of one host, of 128 MiB
REMEDY = "look at the links (hccn_tool -i ID -link -g), then at HCCL_BUFFSIZE and the order of the rank table"


@dataclass(frozen=True)
class Exchange:
    """Is one collective of the protocol.

    run: does it with this rank's values (n,), and returns this rank's result
    truth: the result of a rank, from all ranks' values (W, n) in float64
    timed: it carries a step's gradients or weights
    """

    run: Callable[[Collective, FloatArray], Any]
    truth: Callable[[Any, int], Any]
    timed: bool = True


def all_reduce(collective: Collective, values: FloatArray) -> FloatArray:
    """Sum over the ranks."""
    collective.sum_(values)
    return values


def reduce_scatter(collective: Collective, values: FloatArray) -> FloatArray:
    """Sum over the ranks; each keeps its range."""
    own = collective.reduce_scatter_sum_(FlatArrays([values]), shard_bounds(values.size, collective.world_size))
    return own[0 : own.size]


def all_gather(collective: Collective, values: FloatArray) -> FloatArray:
    """Fill the other ranks' ranges with theirs."""
    collective.all_gather_(values, shard_bounds(values.size, collective.world_size))
    return values


def own_range(values: Any, rank: int, ranks: int) -> Any:
    """Return the elements of a rank's range."""
    bounds = shard_bounds(values.size, ranks)
    return values[bounds[rank] : bounds[rank + 1]]


EXCHANGES: dict[str, Exchange] = {
    "all-reduce": Exchange(all_reduce, lambda values, rank: values.sum(0)),
    "reduce-scatter": Exchange(reduce_scatter, lambda values, rank: own_range(values.sum(0), rank, len(values))),
    "all-gather": Exchange(
        all_gather,
        lambda values, rank: np.concatenate([own_range(each, place, len(values)) for place, each in enumerate(values)]),
    ),
    "gather objects": Exchange(
        lambda collective, values: np.stack(collective.allgather_object(values)),
        lambda values, rank: values,
        timed=False,
    ),
    "broadcast": Exchange(
        lambda collective, values: collective.broadcast_object(values, collective.world_size - 1),
        lambda values, rank: values[-1],
        timed=False,
    ),
    "any": Exchange(
        lambda collective, values: np.array([collective.any(collective.rank == root) for root in (0, -1)]),
        lambda values, rank: np.array([True, False]),
        timed=False,
    ),
}


class First(nn.Cell):
    """Runs a collective and returns one element of its result, so that little is copied to the host."""

    def __init__(self, cell: nn.Cell) -> None:
        super().__init__()
        self.cell = cell

    def construct(self, x: Tensor) -> Tensor:
        return self.cell(x)[:1].astype(mindspore.float32)


# Name -> the cell for a backend, and the truth as in Exchange.
GRAPHS: dict[str, tuple[Callable[[str], nn.Cell], Callable[[Any, int], Any]]] = {
    "all-reduce": (lambda backend: AllReduce(), lambda values, rank: values.sum(0)),
    "reduce-scatter": (
        lambda backend: REDUCE_SCATTER[backend](),
        lambda values, rank: own_range(values.sum(0), rank, len(values)),
    ),
    "all-gather": (lambda backend: AllGather(), lambda values, rank: values.reshape(-1)),
}


def items(station: Station) -> Sequence[Item]:
    """List the collectives of the trainer, and those of graphs where the backend has them."""
    if station.collective.world_size == 1:
        return [Item("", lambda: left_out("one rank has no other"))]
    found = [Item(name, partial(compare, station, exchange), REMEDY) for name, exchange in EXCHANGES.items()]
    if station.backend != "mpi4py":
        dtypes = [dtype for dtype in ("float32", "bfloat16") if dtype in station.accelerator.compute_dtypes]
        found += [
            Item(f"{name} in a graph, {dtype}", partial(compare_graph, station, name, dtype), REMEDY)
            for dtype in dtypes
            for name in GRAPHS
        ]
    return found


def compare_graph(station: Station, name: str, dtype: ComputeDtype) -> Measured:
    """Compare a collective inside a graph with its truth, and time several sizes of it."""
    make, truth = GRAPHS[name]
    ranks, rank = station.collective.world_size, station.collective.rank
    values = everyones(ranks, 1024 * ranks)
    if dtype != "float32":  # it holds few whole numbers, so each element comes from one rank alone
        values = values * (np.arange(1024 * ranks) % ranks == np.arange(ranks)[:, None])
        values = np.minimum(values, PERIOD)
    cell, kind = make(station.backend), COMPUTE_DTYPES[dtype]
    with station.collective.watching():
        found = to_host(cell(Tensor(values[rank].astype(np.float32)).astype(kind)).astype(mindspore.float32))
    wrong = differing(found, truth(values, rank))
    first, rates = First(cell), []
    for size_bytes in GRAPH_SIZES_BYTES_ON_CPU if station.on_cpu else GRAPH_SIZES_BYTES:
        elements = size_bytes // 4 // ranks * ranks
        x = Tensor(np.ones(elements, np.float32)).astype(kind)

        def once(x: Tensor = x) -> None:
            with station.collective.watching():
                to_host(first(x))

        once()  # compiles
        station.collective.barrier()
        rates.append((size_bytes, x.nbytes / shortest_of_runs_s(once) / 1e9))
    demanded = name == "all-reduce" and dtype == "float32" and station.one_host and not station.on_cpu
    return of_rates(wrong, rates, LEAST_GBS if demanded else 0.0)


def everyones(ranks: int, elements: int) -> Any:
    """Return all ranks' values, (ranks, elements) float64."""
    return np.arange(elements) % PERIOD + np.arange(ranks)[:, None] + 0.0


def compare(station: Station, exchange: Exchange) -> Measured:
    """Compare a collective with its truth, and time three sizes of it."""
    collective = station.collective
    ranks, rank = collective.world_size, collective.rank
    values = everyones(ranks, 1024 * ranks + UNEVEN)
    found = np.asarray(exchange.run(collective, values[rank].astype(np.float32)))
    wrong = differing(found, np.asarray(exchange.truth(values, rank)))
    rates = []
    for size_bytes in SIZES_BYTES if exchange.timed else ():
        large = np.ones(size_bytes // 4, np.float32)
        collective.barrier()
        rates.append((size_bytes, size_bytes / shortest_of_runs_s(partial(exchange.run, collective, large)) / 1e9))
    return of_rates(wrong, rates, 0.0)


def shortest_of_runs_s(work: Callable[[], Any]) -> float:
    """Return the shortest of RUNS runs, s. All ranks make the same number of them."""
    seconds = []
    for _ in range(RUNS):
        started_s = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def differing(found: Any, wanted: Any) -> str:
    """Say how a result differs from the exact one; empty when it does not."""
    if found.shape != wanted.shape:
        return f"shape {found.shape} in place of {wanted.shape}"
    wrong = np.flatnonzero(found.reshape(-1) != wanted.reshape(-1))
    if not wrong.size:
        return ""
    first = int(wrong[0])
    values = f"{found.reshape(-1)[first]:g} in place of {wanted.reshape(-1)[first]:g}"
    return f"{wrong.size} of {found.size} values are wrong, the first at {first}: {values}"


def of_rates(wrong: str, rates: Sequence[tuple[int, float]], least: float) -> Measured:
    """Return exactness and bandwidth as one result.

    rates: (message size, bytes; bandwidth, GB/s), the largest last; may be empty
    least: the demand on the last, 0 for none
    """
    text = ", ".join(["exact", *(f"{_size(size_bytes)} {rate:.3g} GB/s" for size_bytes, rate in rates)])
    slow = bool(rates) and rates[-1][1] < least
    wanted = f"exact, >= {least:g} GB/s" if least else "exact"
    return Measured(wrong or text, "failed" if wrong or slow else "ok", wanted)


def _size(size_bytes: int) -> str:
    return f"{size_bytes >> 20} MiB" if size_bytes >= 1 << 20 else f"{size_bytes >> 10} KiB"
