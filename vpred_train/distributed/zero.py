"""Who owns what of the flat parameter space, and how gradients and weights cross between the owners."""

from typing import Protocol

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_arrays import FlatArrays, blocks, bounds_of


class Sharding(Protocol):
    """This rank owns elements [start, stop): it alone keeps their moments and averages, and updates their weights.

    `replicated`: every rank owns all, and all are equal. All methods are called by all ranks in the same order.
    """

    replicated: bool
    start: int
    stop: int

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        """The sum of the ranks' gradients on the own range, in the memory of `gradient`."""

    def square_sum(self, reduced: FlatArrays) -> float:
        """The sum of squares over the whole space of what `reduce_` returned on each rank."""

    def gather_(self, weights: FloatArray) -> None:
        """Complete `weights` (size,), of which each rank has renewed its own range."""

    def whole(self, own: FloatArray) -> FloatArray:
        """(stop - start,) of each rank -> (size,) on every rank; not to be written to."""


class Replicated:
    """Every rank owns everything and does the same update."""

    replicated = True

    def __init__(self, size: int, collective: Collective) -> None:
        self.start, self.stop, self.collective = 0, size, collective

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        for values in gradient.arrays:
            self.collective.sum_(values)
        return gradient

    def square_sum(self, reduced: FlatArrays) -> float:
        # The first rank's: other processors add up in another order, and all must clip by the same factor.
        return float(self.collective.broadcast_object(_square_sum(reduced)))

    def gather_(self, weights: FloatArray) -> None:
        pass

    def whole(self, own: FloatArray) -> FloatArray:
        return own


class Zero1:
    """ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1) by ranges of equal length: each rank keeps
    a share of the moments and the averages, but all weights and its own gradients."""

    replicated = False

    def __init__(self, size: int, collective: Collective) -> None:
        self.bounds, self.collective = bounds_of(size, collective.world_size), collective
        self.start, self.stop = self.bounds[collective.rank : collective.rank + 2]

    def reduce_(self, gradient: FlatArrays) -> FlatArrays:
        return self.collective.reduce_scatter_sum_(gradient, self.bounds)

    def square_sum(self, reduced: FlatArrays) -> float:
        return float(sum(self.collective.allgather_object(_square_sum(reduced))))

    def gather_(self, weights: FloatArray) -> None:
        self.collective.all_gather_(weights, self.bounds)

    def whole(self, own: FloatArray) -> FloatArray:
        values = np.empty(self.bounds[-1], np.float32)
        values[self.start : self.stop] = own
        self.gather_(values)
        return values


def make_sharding(config: TrainConfig, size: int, collective: Collective) -> Sharding:
    """As `zero_stage` says; with one rank there is nothing to share."""
    sharded = config.zero_stage == 1 and collective.world_size > 1
    return Zero1(size, collective) if sharded else Replicated(size, collective)


def _square_sum(values: FlatArrays) -> float:
    """In float64 over blocks: one float32 sum of so many would lose digits."""
    return sum(float(np.dot(array[block], array[block])) for array in values.arrays for block in blocks(0, array.size))
