"""How ranks talk: one protocol, one implementation for each world."""

from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray

PIECE_ELEMENTS = 1 << 18  # 1 MiB of float32: pieces that fit the cache are reduced several times faster


class Collective(Protocol):
    """Every method but `abort` is called by all ranks in the same order."""

    rank: int
    world_size: int

    def mean_(self, values: NDArray[np.float32]) -> None:
        """Replace a contiguous 1-D float32 array by its mean over the ranks, in its own memory."""

    def any(self, flag: bool) -> bool:
        """Whether any rank says yes; the same answer everywhere."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """The root's picklable value on every rank."""

    def allgather_object(self, value: Any) -> list[Any]:
        """Every rank's value, in rank order, on every rank."""

    def barrier(self) -> None:
        """Wait for all."""

    def abort(self, exit_code: int) -> NoReturn:
        """End every rank at once."""


class SingleProcess:
    """A world of one rank."""

    rank = 0
    world_size = 1

    def mean_(self, values: NDArray[np.float32]) -> None:
        pass

    def any(self, flag: bool) -> bool:
        return flag

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return value

    def allgather_object(self, value: Any) -> list[Any]:
        return [value]

    def barrier(self) -> None:
        pass

    def abort(self, exit_code: int) -> NoReturn:
        raise SystemExit(exit_code)


class Mpi:
    """mpi4py over host memory; importing mpi4py.MPI initialises MPI, so it happens here and not at import."""

    def __init__(self) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank = self._comm.Get_rank()
        self.world_size = self._comm.Get_size()

    def mean_(self, values: NDArray[np.float32]) -> None:
        scale = np.float32(1 / self.world_size)
        for start in range(0, values.size, PIECE_ELEMENTS):
            piece = values[start : start + PIECE_ELEMENTS]
            self._comm.Allreduce(self._mpi.IN_PLACE, piece, op=self._mpi.SUM)
            piece *= scale

    def any(self, flag: bool) -> bool:
        return bool(self._comm.allreduce(flag, op=self._mpi.LOR))

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return self._comm.bcast(value, root=root)

    def allgather_object(self, value: Any) -> list[Any]:
        return list(self._comm.allgather(value))

    def barrier(self) -> None:
        self._comm.Barrier()

    def abort(self, exit_code: int) -> NoReturn:
        self._comm.Abort(exit_code)
        raise SystemExit(exit_code)


def make_collective(kind: str, world_size: int) -> Collective:
    """The collective of an accelerator's `kind`. One process needs none of them."""
    return SingleProcess() if world_size == 1 else COLLECTIVES[kind]()


COLLECTIVES = {"mpi4py": Mpi}
