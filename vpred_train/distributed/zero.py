"""Divides the flat parameter space among ranks, and exchanges gradients and weights between the owners."""

from typing import Protocol

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_arrays import FlatArrays, blocks, shard_bounds


class Sharding(Protocol):
    """Gives this rank the elements [start, stop): only it keeps their moments and averages, and updates their weights.

    All ranks call all methods in the same order.

    replicated: every rank owns all elements, with equal values
    """

    replicated: bool
    start: int
    stop: int

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        """Return the sum of the ranks' gradients on the local range, in the memory of `gradient`."""

    def square_sum(self, reduced: FlatArrays) -> float:
        """Return the sum of squares, over the full space, of the gradients that `reduce_` returned on each rank."""

    def gather_(self, weights: FloatArray) -> None:
        """Complete `weights` (size,), of which each rank has updated its local range."""

    def full(self, local: FloatArray) -> FloatArray:
        """Gather the local ranges (stop - start,) into (size,) on every rank, not to be written to."""


class Replicated:
    """Lets every rank own all elements and make the same update."""

    replicated = True

    def __init__(self, size: int, collective: Collective) -> None:
        self.start, self.stop, self.collective = 0, size, collective

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        for values in gradient.arrays:
            self.collective.sum_(values)
        return gradient

    def square_sum(self, reduced: FlatArrays) -> float:
        # Uses rank 0's sum: other processors sum in another order, and all ranks must clip by the same factor.
        return float(self.collective.broadcast_object(_square_sum(reduced)))

    def gather_(self, weights: FloatArray) -> None:
        pass

    def full(self, local: FloatArray) -> FloatArray:
        return local


class Zero1:
    """Implements ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1) with ranges of equal length.

    Each rank keeps a share of the moments and the averages, but all weights and its full local gradients.
    """

    replicated = False

    def __init__(self, size: int, collective: Collective) -> None:
        self.bounds, self.collective = shard_bounds(size, collective.world_size), collective
        self.start, self.stop = self.bounds[collective.rank : collective.rank + 2]

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        return self.collective.reduce_scatter_sum_(gradient, self.bounds)

    def square_sum(self, reduced: FlatArrays) -> float:
        return float(sum(self.collective.allgather_object(_square_sum(reduced))))

    def gather_(self, weights: FloatArray) -> None:
        self.collective.all_gather_(weights, self.bounds)

    def full(self, local: FloatArray) -> FloatArray:
        values = np.empty(self.bounds[-1], np.float32)
        values[self.start : self.stop] = local
        self.gather_(values)
        return values


def make_sharding(config: TrainConfig, size: int, collective: Collective) -> Sharding:
    """Make the sharding that `zero_stage` declares. A single rank has nothing to share."""
    sharded = config.zero_stage == 1 and collective.world_size > 1
    return Zero1(size, collective) if sharded else Replicated(size, collective)


def _square_sum(values: FlatArrays) -> float:
    """Sum the squares in float64 over blocks: one float32 sum of that many elements would lose digits."""
    return sum(float(np.dot(array[block], array[block])) for array in values.arrays for block in blocks(0, array.size))
