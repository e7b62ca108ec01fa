"""Declares the collectives that a checkpoint needs. MPI itself stays outside this package."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Communicator(Protocol):
    """Provides collectives over all ranks.

    Values are what JSON holds. Where nodes keep their own files, broadcast values also hold numpy arrays. A tuple may
    arrive as a list.
    """

    @property
    def rank(self) -> int:
        """The rank's number, 0 .. world_size - 1."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks, at least 1."""
        ...

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return the root's value on every rank. The values that the other ranks pass are ignored."""
        ...

    def allgather_object(self, value: Any) -> list[Any]:
        """Return the values of all ranks, in rank order, on every rank."""
        ...

    def all_gather_(self, values: NDArray[np.float32], bounds: Sequence[int]) -> None:
        """Fill the other ranks' ranges of a contiguous 1-D array.

        Each rank has filled its local range [bounds[rank], bounds[rank + 1]). All bit patterns arrive unchanged.
        """
        ...

    def barrier(self) -> None:
        """Return once every rank has called it."""
        ...


class SingleProcess:
    """Implements the process group of one rank."""

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
