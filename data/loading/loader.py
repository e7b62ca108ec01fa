"""Makes batches of this rank's share, ahead of training in the background if they take time."""

import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.errors import SampleError
from data.keyed_random import sample_generator
from data.loading.fetcher import Arrays, Fetcher
from data.loading.workers import POLL_S, WORKER, InThread, Maker, Workers
from data.order.order import BatchSlice, Order
from data.sources.captions import drawn_caption
from data.sources.source import Source


@dataclass(frozen=True)
class Batch:
    """Holds one rank's share of a global batch.

    arrays: what the fetcher makes, each (b, ...).
    captions: b captions; "" where the caption was dropped.
    epochs, sample_ids: (b,) int64.
    places: (b,) int64, positions of these samples in the global batch.
    samples_seen: the run's clock after this global batch.
    wait_s: how long the trainer waited for the batch.
    """

    arrays: Arrays
    captions: tuple[str, ...]
    epochs: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    samples_seen: int
    wait_s: float

    @property
    def images(self) -> NDArray[np.float32]:
        """The images, (b, 3, H, W) float32 in [-1, 1]. Raises KeyError: when the fetcher makes none."""
        return self.arrays["images"]

    def part(self, index: int, count: int) -> "Batch":
        """Return micro-batch `index` of `count` equal ones."""
        size = len(self.captions) // count
        own = slice(index * size, (index + 1) * size)
        shares = ("captions", "epochs", "sample_ids", "places")
        arrays = {name: array[own] for name, array in self.arrays.items()}
        return replace(self, arrays=arrays, **{name: getattr(self, name)[own] for name in shares})


Item = Batch | Exception  # the next batch, or the error that ends them
# Batches faster than this, such as those read from the page cache, are made on demand, since a hand-over between
# threads would cost 25 % more. The first slow batch starts a prefetch thread.
SLOW_S_PER_BYTE = 1e-9


def dropped(config: DataConfig, seed: int, epoch: int, sample_id: int) -> bool:
    """Return whether the empty caption replaces a sample's caption in this epoch."""
    share = config.caption_drop
    return share > 0 and bool(sample_generator(seed, "caption_drop", epoch, sample_id).random() < share)


class Loader(Iterator[Batch]):
    """Iterates without end over the batches from `start_samples_seen` on. `next` raises failures of the background.

    worker: the arguments after `python` that start `data.loading.worker`.
    """

    def __init__(
        self,
        source: Source,
        fetcher: Fetcher,
        config: DataConfig,
        order: Order,
        *,
        rank: int,
        world_size: int,
        start_samples_seen: int,
        worker: Sequence[str] = WORKER,
    ) -> None:
        self.source, self.config, self.order = source, config, order
        self.share = order.global_batch // world_size
        self.first = rank * self.share
        self._closing = threading.Event()
        self._maker: Maker = InThread(fetcher)
        if config.workers:
            sizes = order.buckets.sizes
            self._maker = Workers(fetcher, config.workers, self.share, sizes, self._closing.is_set, worker)
        self._made = self._make(order.shares(start_samples_seen, self.first, self.share), start_samples_seen)
        self._ready: queue.Queue[Item] = queue.Queue(config.prefetch_batches)
        self._thread: threading.Thread | None = None
        if config.workers:
            self._make_ahead()

    def __next__(self) -> Batch:
        started = time.perf_counter()
        item = next(self._made) if self._thread is None else self._ready.get()
        wait_s = time.perf_counter() - started
        if isinstance(item, Exception):
            # Nothing comes after an error: a further `next` raises it again.
            if self._thread is None:
                self._made = repeat(item)
            else:
                self._ready.put(item)
            raise item
        if self._thread is None and wait_s > SLOW_S_PER_BYTE * sum(array.nbytes for array in item.arrays.values()):
            self._make_ahead()
        return replace(item, wait_s=wait_s)

    def _make_ahead(self) -> None:
        self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
        self._thread.start()

    def _batch(self, share: BatchSlice, arrays: Arrays, samples_seen: int) -> Batch:
        return Batch(
            arrays=arrays,
            captions=tuple(map(self._caption, share.epochs.tolist(), share.sample_ids.tolist())),
            epochs=share.epochs,
            sample_ids=share.sample_ids,
            places=np.arange(self.first, self.first + self.share),
            samples_seen=samples_seen,
            wait_s=0.0,
        )

    def _caption(self, epoch: int, sample_id: int) -> str:
        if dropped(self.config, self.order.seed, epoch, sample_id):
            return ""
        captions = self.source.captions(sample_id)
        return captions[drawn_caption(len(captions), self.order.seed, epoch, sample_id)]

    def _make(self, shares: Iterator[BatchSlice], samples_seen: int) -> Iterator[Item]:
        """Yield batches, and at the end the error if there is one."""
        try:
            for share, arrays in self._maker.batches(shares):
                samples_seen += self.order.global_batch
                yield self._batch(share, arrays, samples_seen)
        except SampleError as error:
            yield self._attributed(error)
        except Exception as error:
            yield error

    def _work(self) -> None:
        for item in self._made:
            self._put(item)
            if self._closing.is_set():
                return

    def _attributed(self, error: SampleError) -> Exception:
        sample = self.source.sample(error.sample_id)
        failure = RuntimeError(f"sample {error.sample_id} ({sample.origin}): {error.reason}")
        failure.__cause__ = error.__cause__
        return failure

    def _put(self, item: Item) -> None:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """End the thread and the workers."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()
        self._maker.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
