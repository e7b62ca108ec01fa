"""Makes the arrays of batches, in a thread of the rank or in worker processes that share memory with it."""

import mmap
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, Protocol

import numpy as np

from data.errors import SampleError
from data.images.size import Size
from data.loading.batch_memory import nbytes_of, views
from data.loading.fetcher import Arrays, Fetcher
from data.order.order import BatchSlice

SLOTS = 2  # batches in work at a time: while one is awaited, idle workers begin the next
TASKS_AHEAD = 2  # tasks that a worker holds unanswered, so that it need not wait for the next
POLL_S = 0.2
END_S = 5.0
WORKER = (
    "-P",
    "-m",
    "data.loading.worker",
)  # arguments after `python`; a caller may pass ones that no module of the same name can shadow


class Maker(Protocol):
    """Makes the arrays of batches, in order."""

    def batches(self, shares: Iterator[BatchSlice]) -> Iterator[tuple[BatchSlice, Arrays]]:
        """Yield each share with its arrays, stacked and collated. Raises SampleError: when a sample cannot be made."""

    def close(self) -> None:
        """End the background processes."""


class InThread:
    """Makes batches in the calling thread."""

    def __init__(self, fetcher: Fetcher) -> None:
        self.fetcher = fetcher

    def batches(self, shares: Iterator[BatchSlice]) -> Iterator[tuple[BatchSlice, Arrays]]:
        for share in shares:
            count = len(share.sample_ids)
            specs = self.fetcher.specs(share.size)
            # Allocate all arrays in one piece: the kernel backs large pieces with large pages, so few pages fault.
            batch = views(np.empty(nbytes_of(specs, count), np.uint8), 0, specs, count)
            for place, (sample_id, epoch) in enumerate(
                zip(share.sample_ids.tolist(), share.epochs.tolist(), strict=True)
            ):
                self._fetch(sample_id, epoch, share.size, {name: array[place, ...] for name, array in batch.items()})
            yield share, self.fetcher.collate(batch)

    def _fetch(self, sample_id: int, epoch: int, size: Size, into: Arrays) -> None:
        try:
            self.fetcher.fetch(sample_id, epoch, size, into)
        except Exception as error:
            raise SampleError(sample_id, "cannot be loaded") from error

    def close(self) -> None:
        pass


@dataclass
class _Pending:
    """Holds a batch that is being made.

    start: where it begins in the shared memory, in bytes.
    missing: number of samples that are not made yet.
    """

    share: BatchSlice
    start: int
    missing: int


@dataclass
class _Worker:
    """Holds a worker process.

    tasks: its unanswered tasks, the oldest first. The process works on the oldest.
    """

    process: subprocess.Popen[bytes]
    connection: Connection
    tasks: deque[tuple[_Pending, int]] = field(default_factory=deque)

    def greet(self, fetcher: Fetcher, samples: int) -> None:
        """Send the first message: the fetcher, and the number of samples of a batch."""
        self.connection.send((fetcher, samples))

    def give(self, pending: _Pending, place: int) -> None:
        """Send the task to make one sample."""
        share = pending.share
        self.tasks.append((pending, place))
        message = (pending.start, place, int(share.sample_ids[place]), int(share.epochs[place]), share.size)
        self.connection.send(message)

    def take(self) -> None:
        """Receive an answer.

        Raises SampleError: when the sample cannot be made. Raises EOFError or OSError: when the worker died.
        """
        answer = self.connection.recv()
        pending, place = self.tasks.popleft()
        if answer is not None:
            raise SampleError(int(pending.share.sample_ids[place]), "cannot be loaded") from RuntimeError(answer)
        pending.missing -= 1

    def death(self) -> Exception:
        """Return the error for a worker that has died."""
        code = self.process.wait(END_S)
        end = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
        reason = f"the worker process {self.process.pid} that made it {end}; signal 9 often means that memory ran out"
        if not self.tasks:
            return RuntimeError(f"data worker {self.process.pid} {end}")
        pending, place = self.tasks[0]
        return SampleError(int(pending.share.sample_ids[place]), reason)


class Workers:
    """Makes batches in `count` processes. Each makes single samples and writes them to shared memory.

    The memory has no name. The kernel frees it when the last process that maps it ends.
    """

    def __init__(
        self,
        fetcher: Fetcher,
        count: int,
        samples: int,
        sizes: Sequence[Size],
        closing: Callable[[], bool],
        worker: Sequence[str] = WORKER,
    ) -> None:
        self.fetcher, self.samples, self.closing, self.worker = fetcher, samples, closing, worker
        self.slot_bytes = max(nbytes_of(fetcher.specs(size), samples) for size in sizes)
        memory_fd = os.memfd_create("vpred-batches")
        os.truncate(memory_fd, SLOTS * self.slot_bytes)
        self.memory = mmap.mmap(memory_fd, 0)
        self.workers = [self._start(memory_fd) for _ in range(count)]
        os.close(memory_fd)

    def _start(self, memory_fd: int) -> _Worker:
        own, other = Pipe()
        argv = [sys.executable, *self.worker, str(other.fileno()), str(memory_fd)]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,  # never written to: it closes when this process ends, for any reason
            pass_fds=(other.fileno(), memory_fd),
            process_group=0,  # only the rank handles signals to its group, such as Ctrl-C
        )
        other.close()
        return _Worker(process, own)

    def batches(self, shares: Iterator[BatchSlice]) -> Iterator[tuple[BatchSlice, Arrays]]:
        in_work: deque[_Pending] = deque()
        backlog: deque[tuple[_Pending, int]] = deque()
        free = deque(range(0, SLOTS * self.slot_bytes, self.slot_bytes))
        for worker in self.workers:
            self._asking(worker, _Worker.greet, self.fetcher, self.samples)
        while not self.closing():
            while free:
                pending = _Pending(next(shares), free.popleft(), self.samples)
                in_work.append(pending)
                backlog.extend((pending, place) for place in range(self.samples))
            self._give(backlog)
            if in_work[0].missing:
                self._take()
                continue
            done = in_work.popleft()
            made = views(self.memory, done.start, self.fetcher.specs(done.share.size), self.samples)
            yield done.share, self._own(self.fetcher.collate(made))
            free.append(done.start)

    def _own(self, arrays: Arrays) -> Arrays:
        """Copy the arrays that lie in the shared memory, since a later batch overwrites it."""
        shared = np.frombuffer(self.memory, np.uint8)
        return {name: array.copy() if np.may_share_memory(array, shared) else array for name, array in arrays.items()}

    def _give(self, backlog: deque[tuple[_Pending, int]]) -> None:
        for _ in range(TASKS_AHEAD):
            for worker in self.workers:
                if backlog and len(worker.tasks) < TASKS_AHEAD:
                    self._asking(worker, _Worker.give, *backlog.popleft())

    def _take(self) -> None:
        by_connection: dict[Any, _Worker] = {worker.connection: worker for worker in self.workers}
        for connection in wait(list(by_connection), POLL_S):
            self._asking(by_connection[connection], _Worker.take)

    def _asking(self, worker: _Worker, ask: Callable[..., None], *arguments: Any) -> None:
        try:
            ask(worker, *arguments)
        except (EOFError, OSError):
            raise worker.death() from None

    def close(self) -> None:
        for worker in self.workers:
            worker.connection.close()
            if worker.process.stdin:
                worker.process.stdin.close()
        for worker in self.workers:
            try:
                worker.process.wait(END_S)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
