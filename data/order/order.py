"""Computes which sample comes when: a pure function of the seed and the clock, in constant memory, without replay."""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.images.size import Size
from data.keyed_random import sample_generator
from data.order.buckets import Buckets, buckets_of
from data.order.permutation import Permutation
from data.sources.source import Source

# A checkpoint records it. Raise it with each change of which sample comes when: runs cannot resume across one.
ORDER_VERSION = 2

KEPT_PERMUTATIONS = 64
DRAWN_AHEAD = 32  # batches


@dataclass(frozen=True)
class Part:
    """Describes one source's part in an epoch.

    count: number of the source's samples.
    per_epoch: number of samples that an epoch takes: more or fewer than `count`, by the source's weight.
    """

    count: int
    per_epoch: int


def part_of(count: int, weight: float) -> Part:
    """Return a source's part in an epoch: each sample `weight` times on average, and at least one sample."""
    return Part(count, max(1, round(weight * count)) if count else 0)


class SampleStream:
    """Orders the samples of some parts, numbered one part after the other, in an endless stream.

    An epoch takes `per_epoch` samples of each part, and mixes the parts by a shuffle. Parts are visited separately: a
    visit takes every sample of a part exactly once, in a new shuffle.
    """

    def __init__(self, parts: Sequence[Part], seed: int, number: int = 0) -> None:
        self.parts, self.seed, self.number = parts, seed, number
        self.epoch_starts = np.cumsum([0, *(part.per_epoch for part in parts)])
        self.first_ids = np.cumsum([0, *(part.count for part in parts)])
        self.per_epoch = int(self.epoch_starts[-1])
        self._permutation = lru_cache(KEPT_PERMUTATIONS)(self._make_permutation)

    def at(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (visits, members), each (n,) int64, at the stream's `positions` (n,).

        visits: how often the sample has been drawn before.
        members: the sample's number within the stream.
        """
        epochs, places = np.divmod(positions, self.per_epoch)
        if len(self.parts) > 1:
            places = self._shuffled("mixture", 0, epochs, places, self.per_epoch)
        visits, members = np.empty_like(places), np.empty_like(places)
        owner = np.searchsorted(self.epoch_starts, places, side="right") - 1
        for number in np.unique(owner):
            part, own = self.parts[number], owner == number
            taken = epochs[own] * part.per_epoch + places[own] - self.epoch_starts[number]
            visits[own], index = np.divmod(taken, part.count)
            members[own] = self.first_ids[number] + self._shuffled("shuffle", number, visits[own], index, part.count)
        return visits, members

    def _shuffled(
        self, stream: str, part: int, visits: NDArray[np.int64], places: NDArray[np.int64], size: int
    ) -> NDArray[np.int64]:
        """Permute `places` (n,) in 0 .. size - 1, each by the permutation of its visit."""
        shuffled = np.empty_like(places)
        for visit in np.unique(visits):
            own = visits == visit
            shuffled[own] = self._permutation(stream, int(part), int(visit), size)(places[own])
        return shuffled

    def _make_permutation(self, stream: str, part: int, visit: int, size: int) -> Permutation:
        return Permutation(size, sample_generator(self.seed, stream, visit, (self.number << 32) | part))


@dataclass(frozen=True)
class BatchSlice:
    """Holds some samples of one global batch.

    size: of all these samples.
    epochs: (n,) int64: how often each sample has been drawn before. It keys all randomness of its sample.
    sample_ids: (n,) int64.
    """

    size: Size
    epochs: NDArray[np.int64]
    sample_ids: NDArray[np.int64]


class Order:
    """Orders the batches of a run over folders of `counts` samples, one folder after the other, with their weights.

    Nothing is dropped or repeated: the remainder of an epoch opens the next one.
    Without buckets, the clock is the position in one stream, so that a batch may straddle two epochs.
    With buckets, each bucket is such a stream. Epoch e takes the batches of a bucket that become full during it; the
    remainder waits for the next epoch. An epoch's batches are shuffled across the buckets.
    """

    def __init__(
        self, counts: Sequence[int], weights: Sequence[float], seed: int, global_batch: int, buckets: Buckets
    ) -> None:
        self.seed, self.global_batch, self.buckets = seed, global_batch, buckets
        if len(buckets.sizes) == 1:
            self.streams = [SampleStream([*map(part_of, counts, weights)], seed)]
        else:
            bounds = np.cumsum(counts).tolist()
            self.streams = [
                SampleStream(
                    [
                        *map(
                            part_of,
                            np.diff([buckets.below(number, bound) for bound in bounds], prepend=0).tolist(),
                            weights,
                        )
                    ],
                    seed,
                    number,
                )
                for number in buckets.numbers
            ]

    @property
    def samples_per_epoch(self) -> int:
        """Number of samples that an epoch takes. With weights, it differs from the number of samples."""
        return sum(self.taken_per_epoch)

    @property
    def taken_per_epoch(self) -> list[int]:
        """Number of samples that an epoch takes of each source."""
        return [
            sum(part.per_epoch for part in parts)
            for parts in zip(*(stream.parts for stream in self.streams), strict=True)
        ]

    def share(self, samples_seen: int, first: int, count: int) -> BatchSlice:
        """Return samples [first, first + count) of the global batch that follows `samples_seen`.

        Raises ValueError: when `samples_seen` is no multiple of the global batch, with several buckets.
        """
        number, start = 0, samples_seen
        if len(self.streams) > 1:
            if samples_seen % self.global_batch:
                raise ValueError(f"{samples_seen} samples seen are no multiple of the global batch {self.global_batch}")
            number, start = self._batch(samples_seen // self.global_batch)
        visits, sample_ids = self.streams[number].at(np.arange(start + first, start + first + count))
        if len(self.streams) > 1:
            sample_ids = self.buckets.members(number, sample_ids)
        return BatchSlice(self.buckets.sizes[number], visits, sample_ids)

    def shares(self, samples_seen: int, first: int, count: int) -> Iterator[BatchSlice]:
        """Yield `share` of each global batch from `samples_seen` on, without end.

        Without buckets, DRAWN_AHEAD shares are drawn at a time, which costs hardly more than one.
        """
        while len(self.streams) > 1:
            yield self.share(samples_seen, first, count)
            samples_seen += self.global_batch
        while True:
            clocks = samples_seen + self.global_batch * np.arange(DRAWN_AHEAD)
            positions = clocks[:, None] + np.arange(first, first + count)
            visits, sample_ids = (drawn.reshape(positions.shape) for drawn in self.streams[0].at(positions.ravel()))
            for place in range(DRAWN_AHEAD):
                yield BatchSlice(self.buckets.sizes[0], visits[place], sample_ids[place])
            samples_seen += self.global_batch * DRAWN_AHEAD

    def _batch(self, index: int) -> tuple[int, int]:
        """Return the bucket of the run's batch `index`, and the batch's first position in the bucket's stream."""
        # Each bucket's batches lag its samples by less than one batch, so the epoch is `earliest` or slightly later.
        earliest = index * self.global_batch // self.samples_per_epoch
        latest = earliest + len(self.streams) * self.global_batch // self.samples_per_epoch + 2
        epoch = bisect_right(range(earliest, latest), index, key=lambda epoch: sum(self._full(epoch))) + earliest - 1
        before, after = self._full(epoch), self._full(epoch + 1)
        counts = [stop - start for start, stop in zip(before, after, strict=True)]
        shuffle = Permutation(sum(counts), sample_generator(self.seed, "buckets", epoch, 0))
        place = int(shuffle(np.array([index - sum(before)]))[0])
        starts = np.cumsum([0, *counts])
        bucket = int(np.searchsorted(starts, place, side="right")) - 1
        return bucket, (before[bucket] + place - int(starts[bucket])) * self.global_batch

    def _full(self, epoch: int) -> list[int]:
        """Return how many batches of each bucket are full before `epoch`."""
        return [epoch * stream.per_epoch // self.global_batch for stream in self.streams]


def make_order(source: Source, config: DataConfig, seed: int, global_batch: int) -> Order:
    """Return the order of a source's samples in a run."""
    weights = [folder.weight for folder in config.folders]
    return Order(source.counts, weights, seed, global_batch, buckets_of(source, config, global_batch))
