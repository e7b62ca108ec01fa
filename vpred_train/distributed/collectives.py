"""Defines how ranks communicate: one protocol, with one implementation for each kind of world."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NoReturn, Protocol

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train import runtime
from vpred_train.arrays import FloatArray
from vpred_train.distributed.flat_arrays import FlatArrays, blocks, largest_shard, range_in
from vpred_train.distributed.object_codec import decode, encode
from vpred_train.distributed.watchdog import CollectiveTimer, Watchdog

logger = logging.getLogger(__name__)

TIMEOUT_S = 1800.0  # for jobs whose launcher gives no timeout
MAX_BYTES = 1 << 30  # largest message: MPI counts in C ints
PIECE_ELEMENTS = 1 << 19  # 2 MiB of float32: pieces that fit the cache are reduced several times faster


class Collective(Protocol):
    """Exchanges values between ranks. All ranks call every method but `abort` and `close`, in the same order.

    Objects are small: JSON values, and numpy arrays at any depth. Tuples arrive as lists.

    bounds (argument): bounds of the ranks' ranges of a flat space; rank r's range is [bounds[r], bounds[r + 1])
    """

    rank: int
    world_size: int
    timer: CollectiveTimer

    def sum_(self, values: FloatArray) -> None:
        """Replace a contiguous 1-D float32 array by its sum over the ranks, in place."""

    def reduce_scatter_sum_(self, values: FlatArrays, bounds: Sequence[int]) -> FlatArrays:
        """Replace this rank's range by its sum over the ranks, in place, and return a view of it.

        The other ranks' ranges keep this rank's values.
        """

    def all_gather_(self, values: FloatArray, bounds: Sequence[int]) -> None:
        """Fill the other ranks' ranges of a contiguous 1-D float32 array. Each rank provides its local range."""

    def any(self, flag: bool) -> bool:
        """Return whether the flag is true on any rank. All ranks get the same answer."""

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        """Return the root's value on every rank. The others' values are ignored."""

    def allgather_object(self, value: Any) -> list[Any]:
        """Return every rank's value, in rank order, on every rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""

    def abort(self, exit_code: int) -> NoReturn:
        """End every rank at once."""

    def close(self) -> None:
        """Release the collective. No call may follow."""


class SingleProcess:
    """Implements `Collective` for a world of one rank."""

    rank = 0
    world_size = 1

    def __init__(self) -> None:
        self.timer = CollectiveTimer()

    def sum_(self, values: FloatArray) -> None:
        pass

    def reduce_scatter_sum_(self, values: FlatArrays, bounds: Sequence[int]) -> FlatArrays:
        return values

    def all_gather_(self, values: FloatArray, bounds: Sequence[int]) -> None:
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

    def close(self) -> None:
        pass


class MpiCollective:
    """Implements `Collective` with mpi4py over host memory.

    Importing mpi4py.MPI initialises MPI, so it is imported here and not with this module.
    Objects are sent as JSON in buffers: mpi4py's lower-case methods would unpickle what the other ranks send.
    """

    def __init__(self, timeout_s: float) -> None:
        from mpi4py import MPI

        self._mpi = MPI
        self._comm = MPI.COMM_WORLD
        self.rank = self._comm.Get_rank()
        self.world_size = self._comm.Get_size()
        self._received = np.empty(PIECE_ELEMENTS, np.float32)
        self._watchdog = Watchdog(self.rank, timeout_s)
        self.timer = self._watchdog.timer

    def sum_(self, values: FloatArray) -> None:
        with self._watchdog.watching():
            for block in blocks(0, values.size, PIECE_ELEMENTS):
                self._comm.Allreduce(self._mpi.IN_PLACE, values[block], op=self._mpi.SUM)

    def reduce_scatter_sum_(self, values: FlatArrays, bounds: Sequence[int]) -> FlatArrays:
        # Uses pairwise exchange: MPI's operation needs the ranks' ranges packed together, and Open MPI's is slower.
        local = values.view(bounds[self.rank], bounds[self.rank + 1])
        with self._watchdog.watching():
            for block in blocks(0, largest_shard(bounds), PIECE_ELEMENTS):
                place = range_in(bounds, self.rank, block)
                total, received = values.view(place.start, place.stop), self._received[: place.stop - place.start]
                for distance in range(1, self.world_size):
                    target, source = ((self.rank + step) % self.world_size for step in (distance, -distance))
                    self._comm.Sendrecv(
                        values[range_in(bounds, target, block)], target, recvbuf=received, source=source
                    )
                    total.add_(received)
        return local

    def all_gather_(self, values: FloatArray, bounds: Sequence[int]) -> None:
        longest = largest_shard(bounds)
        starts, stops = np.array(bounds[:-1]), np.array(bounds[1:])
        with self._watchdog.watching():
            for block in blocks(0, longest, PIECE_ELEMENTS // self.world_size):
                places = np.minimum(starts + block.start, stops)
                counts = np.minimum(starts + block.stop, stops) - places
                self._comm.Allgatherv(self._mpi.IN_PLACE, [values, (counts, places), self._mpi.FLOAT])

    def any(self, flag: bool) -> bool:
        with self._watchdog.watching():
            self._comm.Allreduce(self._mpi.IN_PLACE, yes := np.array([flag], np.int32), op=self._mpi.MAX)
        return bool(yes[0])

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        encoded = np.frombuffer(encode(value if self.rank == root else None), np.uint8)
        with self._watchdog.watching():
            self._comm.Bcast(size := np.array([encoded.size]), root)
            received = encoded if self.rank == root else np.empty(size[0], np.uint8)
            for block in blocks(0, received.size, MAX_BYTES):
                self._comm.Bcast(received[block], root)
        return decode(received.tobytes())

    def allgather_object(self, value: Any) -> list[Any]:
        encoded = np.frombuffer(encode(value), np.uint8)
        sizes = np.empty(self.world_size, np.int64)
        with self._watchdog.watching():
            self._comm.Allgather(np.array([encoded.size]), sizes)
            starts = np.cumsum(sizes) - sizes
            received = np.empty(sizes.sum(), np.uint8)
            self._comm.Allgatherv(encoded, [received, (sizes, starts), self._mpi.BYTE])
        return [decode(received[at : at + size].tobytes()) for at, size in zip(starts, sizes, strict=True)]

    def barrier(self) -> None:
        with self._watchdog.watching():
            self._comm.Barrier()

    def abort(self, exit_code: int) -> NoReturn:
        self._comm.Abort(exit_code)
        raise SystemExit(exit_code)

    def close(self) -> None:
        self._watchdog.close()


def make_collective(kind: str, world_size: int, timeout_s: float = TIMEOUT_S) -> Collective:
    """Make the collective of an accelerator's `kind`. A single process needs none of these.

    Raises ConfigError: when another number of ranks has met than the environment declares.
    """
    if world_size == 1:
        return SingleProcess()
    collective = COLLECTIVES[kind](timeout_s)
    if collective.world_size != world_size:
        raise ConfigError(
            f"environment: this is one of {world_size} ranks by its variables, but {collective.world_size} have met; "
            "unset what another job has left there (OMPI_COMM_WORLD_RANK, PMI_RANK, SLURM_PROCID), or start all ranks "
            "by the mpirun of the MPI that mpi4py uses"
        )
    return collective


def _device(backend: str, timeout_s: float) -> Collective:
    """Start MindSpore's communication. MindSpore (MS_TOPO_TIMEOUT) or HCCL limits how long the start may take."""
    runtime.init_communication()
    from vpred_train.distributed.device_collective import DeviceCollective

    return DeviceCollective(backend, timeout_s)


COLLECTIVES: dict[str, Callable[[float], Collective]] = {
    "mpi4py": MpiCollective,
    "mccl": partial(_device, "mccl"),
    "hccl": partial(_device, "hccl"),
}
