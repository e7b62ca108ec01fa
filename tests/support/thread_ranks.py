"""Ranks that are threads of one process."""

import queue
from typing import Any

from vpred_train.distributed.collectives import SingleProcess


class ThreadRank(SingleProcess):
    """One of several ranks that are threads; they have only a broadcast."""

    def __init__(self, rank: int, told: queue.Queue[Any]) -> None:
        self.rank, self.world_size, self.told = rank, 2, told

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        if self.rank == root:
            self.told.put(value)
            return value
        return self.told.get(timeout=60)
