"""Batches of this rank's share, made ahead by a background thread."""

import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.keyed_random import sample_generator
from data.order import Order
from data.source import Source
from data.transforms import load_image

POLL_S = 0.2


@dataclass(frozen=True)
class Batch:
    """One rank's share of a global batch.

    images (b, 3, R, R) float32 in [-1, 1]; captions, "" where dropped; epochs and sample_ids (b,) int64;
    places (b,) int64, which of the global batch's samples these are; samples_seen: the run's clock after this global
    batch; wait_s: how long the trainer waited for it.
    """

    images: NDArray[np.float32]
    captions: tuple[str, ...]
    epochs: NDArray[np.int64]
    sample_ids: NDArray[np.int64]
    places: NDArray[np.int64]
    samples_seen: int
    wait_s: float

    def part(self, index: int, count: int) -> "Batch":
        """Micro-batch `index` of `count` equal ones."""
        size = len(self.captions) // count
        own = slice(index * size, (index + 1) * size)
        shares = ("images", "captions", "epochs", "sample_ids", "places")
        return replace(self, **{name: getattr(self, name)[own] for name in shares})


class Loader(Iterator[Batch]):
    """An endless iterator from `start_samples_seen` on. A failure in the background is raised by `next`."""

    def __init__(
        self,
        source: Source,
        config: DataConfig,
        *,
        seed: int,
        global_batch: int,
        rank: int,
        world_size: int,
        start_samples_seen: int,
    ) -> None:
        self.source, self.config, self.seed = source, config, seed
        self.global_batch, self.rank, self.share = global_batch, rank, global_batch // world_size
        self.order = Order(len(source), seed)
        self._ready: queue.Queue[Batch | BaseException] = queue.Queue(config.prefetch_batches)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(start_samples_seen,), name="loader", daemon=True)
        self._thread.start()

    def __next__(self) -> Batch:
        started = time.perf_counter()
        item = self._ready.get()
        if isinstance(item, BaseException):
            raise item
        return Batch(**{**vars(item), "wait_s": time.perf_counter() - started})

    def make(self, samples_seen: int) -> Batch:
        """The batch that follows `samples_seen`: a pure function of it, the seed and the data."""
        first = self.rank * self.share
        epochs, ids = self.order.slice(samples_seen + first, self.share)
        return Batch(
            images=np.stack([self._image(*place) for place in zip(epochs, ids, strict=True)]),
            captions=tuple(self._caption(*place) for place in zip(epochs, ids, strict=True)),
            epochs=epochs,
            sample_ids=ids,
            places=np.arange(first, first + self.share),
            samples_seen=samples_seen + self.global_batch,
            wait_s=0.0,
        )

    def _image(self, epoch: int, sample_id: int) -> NDArray[np.float32]:
        sample = self.source.sample(sample_id)
        try:
            return load_image(sample.read(), self.config, sample_generator(self.seed, "augment", epoch, sample_id))
        except Exception as error:
            raise RuntimeError(f"sample {sample_id} ({sample.origin}) cannot be loaded") from error

    def _caption(self, epoch: int, sample_id: int) -> str:
        generator = sample_generator(self.seed, "caption_drop", epoch, sample_id)
        return "" if generator.random() < self.config.caption_drop else self.source.sample(sample_id).text

    def _work(self, samples_seen: int) -> None:
        try:
            while not self._closing.is_set():
                batch = self.make(samples_seen)
                samples_seen = batch.samples_seen
                self._put(batch)
        except BaseException as error:
            self._put(error)

    def _put(self, item: Batch | BaseException) -> None:
        while not self._closing.is_set():
            try:
                self._ready.put(item, timeout=POLL_S)
            except queue.Full:
                continue
            return

    def close(self) -> None:
        """End the background thread."""
        self._closing.set()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
