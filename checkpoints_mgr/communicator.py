"""The little that a checkpoint asks of the process group; MPI itself stays outside this package."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Communicator(Protocol):
    """Collectives over all ranks. Values are what JSON holds and, in what is broadcast where nodes keep their own
    files, numpy arrays; a tuple may arrive as a list."""

    @property
    def rank(self) -> int:
        """0 .. world_size - 1."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks, at least 1."""
        ...

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return the root's value on every rank; the value given by the others is ignored."""
        ...

    def allgather_object(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank."""
        ...

    def all_gather_(self, values: NDArray[np.float32], bounds: Sequence[int]) -> None:
        """Fill the others' ranges of a contiguous 1-D array, of which each rank has its own, [bounds[rank],
        bounds[rank + 1]). Whatever bits are in it arrive unchanged."""
        ...

    def barrier(self) -> None:
        """Return once every rank has called it."""
        ...


class SingleProcess:
    """The process group of one."""

    rank = 0
    world_size = 1

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        if root != 0:
            raise ValueError(f"broadcast from rank {root} in a group of one")
        return value

    def allgather_object(self, value: Any) -> list[Any]:
        return [value]

    def all_gather_(self, values: NDArray[np.float32], bounds: Sequence[int]) -> None:
        return None

    def barrier(self) -> None:
        return None
