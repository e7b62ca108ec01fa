"""Implements collectives with MindSpore's communication: HCCL between NPUs, MCCL between processes on CPU."""

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.communication import get_group_size, get_rank
from numpy.typing import NDArray

from vpred_train.arrays import FloatArray
from vpred_train.distributed.flat_arrays import FlatArrays, blocks, largest_shard, padded_shards, range_in
from vpred_train.distributed.object_codec import decode, encode
from vpred_train.distributed.watchdog import Watchdog

# Elements that one operation handles. Each length is a graph to compile, so there are few; zeros fill the rest.
PIECES = (1 << 10, 1 << 14, 1 << 18)


class AllReduce(nn.Cell):
    """Sums values (n,) float32 over the ranks, to (n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_reduce(values)


class AllGather(nn.Cell):
    """Gathers all ranks' values (n,) in rank order, to (world_size * n,)."""

    def __init__(self) -> None:
        super().__init__()
        self.all_gather = ops.AllGather()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_gather(values)


class ReduceScatter(nn.Cell):
    """Sums values (world_size * n,) float32 over the ranks, and returns this rank's n elements of the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce_scatter = ops.ReduceScatter()

    def construct(self, values: Tensor) -> Tensor:
        return self.reduce_scatter(values)


class ReduceThenSlice(nn.Cell):
    """Replaces ReduceScatter where the backend lacks that operation. It sends more than needed."""

    def __init__(self) -> None:
        super().__init__()
        self.all_reduce = ops.AllReduce()
        self.rank, self.world_size = get_rank(), get_group_size()

    def construct(self, values: Tensor) -> Tensor:
        return self.all_reduce(values).reshape((self.world_size, -1))[self.rank]


# Backend -> how it reduces and scatters. The backends differ in nothing else.
REDUCE_SCATTER = {"hccl": ReduceScatter, "mccl": ReduceThenSlice}


class DeviceCollective:
    """Implements `Collective` with small graphs. The values go from host memory to the device and back."""

    def __init__(self, backend: str, timeout_s: float) -> None:
        self.rank, self.world_size = get_rank(), get_group_size()
        self._all_reduce, self._all_gather = AllReduce(), AllGather()
        self._reduce_scatter = REDUCE_SCATTER[backend]()
        self._watchdog = Watchdog(self.rank, timeout_s)
        self.timer = self._watchdog.timer

    def sum_(self, values: FloatArray) -> None:
        length = piece_elements(values.size)
        with self._watchdog.watching():
            for block in blocks(0, values.size, length):
                local = values[block]
                local[:] = run(self._all_reduce, padded(local, length))[: local.size]

    def reduce_scatter_sum_(self, values: FlatArrays, bounds: Sequence[int]) -> FlatArrays:
        length = self._share_elements(largest_shard(bounds))
        with self._watchdog.watching():
            for block, pieces in padded_shards(values, bounds, length):
                place = range_in(bounds, self.rank, block)
                values.view(place.start, place.stop).set_(run(self._reduce_scatter, pieces.reshape(-1)))
        return values.view(bounds[self.rank], bounds[self.rank + 1])

    def all_gather_(self, values: FloatArray, bounds: Sequence[int]) -> None:
        local = values[bounds[self.rank] : bounds[self.rank + 1]]
        longest = largest_shard(bounds)
        length = self._share_elements(longest)
        with self._watchdog.watching():
            for block in blocks(0, longest, length):
                pieces = self._gather(local[block], length)
                for rank, piece in enumerate(pieces):
                    target = values[bounds[rank] : bounds[rank + 1]][block]
                    target[:] = piece[: target.size]

    def any(self, flag: bool) -> bool:
        with self._watchdog.watching():
            return bool(self._gather(np.array([flag], np.int32), 1).any())

    def broadcast_object(self, value: Any, root: int = 0) -> Any:
        return self.allgather_object(value if self.rank == root else None)[root]

    def allgather_object(self, value: Any) -> list[Any]:
        encoded = encode(value)
        with self._watchdog.watching():
            # Sent as int32, which every backend can gather.
            sizes = self._gather(np.array([len(encoded)], np.int64).view(np.int32), 2).view(np.int64)[:, 0].tolist()
            words = padded(np.frombuffer(encoded, np.uint8), -(-max(sizes) // 4) * 4).view(np.int32)
            received = np.empty((self.world_size, words.size), np.int32)
            length = self._share_elements(words.size)
            for block in blocks(0, words.size, length):
                target = received[:, block]
                target[:] = self._gather(words[block], length)[:, : target.shape[1]]
        return [decode(row.tobytes()[:size]) for row, size in zip(received, sizes, strict=True)]

    def barrier(self) -> None:
        self.any(False)

    def abort(self, exit_code: int) -> NoReturn:
        # Exit at once: MindSpore's shutdown waits for the other ranks, which the launcher ends when this one fails.
        with suppress(OSError):  # a full disk
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(exit_code)

    def close(self) -> None:
        self._watchdog.close()

    def _gather(self, values: NDArray[Any], length: int) -> NDArray[Any]:
        """Return every rank's values followed by zeros, (world_size, length)."""
        return run(self._all_gather, padded(values, length)).reshape(self.world_size, length)

    def _share_elements(self, size: int) -> int:
        """Return the length of a rank's pieces, so that the ranks' pieces together fit one operation."""
        return piece_elements(size * self.world_size) // self.world_size


def run(operation: nn.Cell, values: NDArray[Any]) -> NDArray[Any]:
    """Run a graph and return its result, in memory that its next run may reuse."""
    return operation(Tensor.from_numpy(values)).asnumpy()


def piece_elements(size: int) -> int:
    """Return the length of the pieces in which `size` elements are sent."""
    return next((piece for piece in PIECES if piece >= size), PIECES[-1])


def padded(values: NDArray[Any], length: int) -> NDArray[Any]:
    """Return `values` (1-D), followed by zeros up to `length`."""
    return values if values.size == length else np.pad(values, (0, length - values.size))
