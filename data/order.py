"""Which sample comes when: a pure function of the seed and the position in an endless stream."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.keyed_random import epoch_generator


class Order:
    """Position p is sample number p % n of epoch p // n's permutation: each sample exactly once an epoch.

    A batch may straddle two epochs, so nothing is dropped and nothing is repeated. Any position is found in O(1)
    beyond the permutation of its epoch.
    """

    def __init__(self, num_samples: int, seed: int) -> None:
        self.num_samples, self.seed = num_samples, seed
        self._permutation = lru_cache(maxsize=2)(self._permute)

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        return epoch_generator(self.seed, epoch).permutation(self.num_samples)

    def at(self, position: int) -> tuple[int, int]:
        """(epoch, sample id) of a position, counted in samples from the start of the run."""
        epoch, offset = divmod(position, self.num_samples)
        return epoch, int(self._permutation(epoch)[offset])

    def slice(self, start: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Epochs and sample ids, (count,) int64 each, of positions [start, start + count)."""
        places = np.array([self.at(position) for position in range(start, start + count)], np.int64)
        return places[:, 0], places[:, 1]
