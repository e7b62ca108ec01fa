"""Groups images into aspect buckets: images of different shapes train at sizes of about equal area (NovelAI 2022)."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import BucketsConfig, DataConfig
from data.images.size import Size
from data.sources.source import Source

BLOCK = 1024  # samples
AT_A_TIME = 64 * BLOCK

Ids = NDArray[np.int64]
OfSamples = Callable[[Ids], NDArray[Any]]  # sample ids (n,) -> one value or row for each


class Buckets:
    """Holds the sizes, and assigns each sample to one.

    number_of: returns the buckets (n,) of samples (n,), from the sizes of their images.
    No list of samples is kept, only a table of how many samples of a bucket come before each block of samples. For
    seven buckets this table takes 28 bytes for 1024 samples.
    """

    def __init__(self, sizes: Sequence[Size], count: int, number_of: OfSamples) -> None:
        self.sizes, self.count, self.number_of = tuple(sizes), count, number_of

    @property
    def numbers(self) -> range:
        """The numbers of the buckets."""
        return range(len(self.sizes))

    @cached_property
    def _before(self) -> NDArray[np.uint32]:
        """Number of a bucket's samples before each block, and in total at the end: (buckets, blocks + 1) uint32."""
        buckets = len(self.sizes)
        before = np.zeros((buckets, -(-self.count // BLOCK) + 1), np.uint32)
        for ids in _in_pieces(self.count):
            first, last = int(ids[0]) // BLOCK, int(ids[-1]) // BLOCK
            cells = (ids // BLOCK - first) * buckets + self.number_of(ids)
            in_block = np.bincount(cells, minlength=(last - first + 1) * buckets)
            before[:, first + 1 : last + 2] = in_block.reshape(-1, buckets).T
        return np.cumsum(before, axis=1, dtype=before.dtype, out=before)

    def below(self, number: int, sample_id: int) -> int:
        """Return how many samples of a bucket come before `sample_id`."""
        block = sample_id // BLOCK
        rest = self.number_of(np.arange(block * BLOCK, sample_id))
        return int(self._before[number, block]) + int((rest == number).sum())

    def members(self, number: int, places: Ids) -> Ids:
        """Return the ids (n,) of a bucket's samples at `places` (n,), counted from 0 in the order of their ids."""
        before = self._before[number]
        blocks = np.searchsorted(before, places.astype(before.dtype), side="right") - 1
        found = np.empty_like(places)
        for block in np.unique(blocks):
            start, own = int(block) * BLOCK, blocks == block
            ids = np.arange(start, min(start + BLOCK, self.count))
            found[own] = ids[self.number_of(ids) == number][places[own] - int(before[block])]
        return found

    def describe(self) -> str:
        """Return every size, width x height in pixels, with its number of samples, as text."""
        return ", ".join(f"{size}: {n}" for size, n in zip(self.sizes, self._before[:, -1], strict=True))


def one_bucket(size: Size, count: int) -> Buckets:
    """Return buckets with all samples at one size."""
    return Buckets([size], count, lambda ids: np.zeros(len(ids), np.int64))


def buckets_of(source: Source, config: DataConfig, global_batch: int) -> Buckets:
    """Return the buckets that a source's samples train in."""
    if config.buckets is None:
        return one_bucket(Size(config.resolution, config.resolution), len(source))
    return make_buckets(config.buckets, config.resolution, len(source), source.sizes, global_batch)


def make_buckets(config: BucketsConfig, resolution: int, count: int, sizes_of: OfSamples, global_batch: int) -> Buckets:
    """Make the buckets of `count` images.

    sizes_of: returns the sizes (n, 2) of samples (n,), height and width in pixels.
    Each image goes to the size with the nearest aspect ratio, measured as a ratio of ratios. The size with the fewest
    images is dropped as long as it has fewer than a global batch, or there are more than `config.max_shapes` sizes.
    Its images go to the nearest remaining size.
    """
    candidates = bucket_sizes(resolution, config.multiple_px, config.max_aspect)
    aspects = np.log([size.width / size.height for size in candidates])
    # Count between all borders that may remain in the end, so that one pass over the images suffices.
    every_border = np.unique((aspects[:, None] + aspects) / 2)
    between = sum(
        np.bincount(_nearest(every_border, sizes_of, ids), minlength=len(every_border) + 1) for ids in _in_pieces(count)
    )
    kept = np.arange(len(candidates))
    while True:
        borders = (aspects[kept][1:] + aspects[kept][:-1]) / 2
        bucket_of = np.searchsorted(np.searchsorted(every_border, borders), np.arange(len(every_border) + 1))
        counts = np.bincount(bucket_of, between)
        if len(kept) == 1:
            return one_bucket(candidates[kept[0]], count)
        if counts.min() >= global_batch and len(kept) <= config.max_shapes:
            sizes = [candidates[number] for number in kept]
            return Buckets(sizes, count, partial(_nearest, borders, sizes_of))
        kept = np.delete(kept, counts.argmin())


def bucket_sizes(resolution: int, multiple_px: int, max_aspect: float) -> Sequence[Size]:
    """Return the candidate sizes, the tallest first.

    For each short side that is a multiple of `multiple_px`, the long side brings the area nearest to resolution^2.
    Both orientations are included, within `max_aspect`.
    """
    area, found = resolution**2, set()
    for short in range(multiple_px, resolution + multiple_px, multiple_px):
        long = max(multiple_px, multiple_px * round(area / short / multiple_px))
        if max(short, long) <= max_aspect * min(short, long):
            found |= {Size(short, long), Size(long, short)}
    return sorted(found, key=lambda size: math.log(size.width / size.height))


def _nearest(borders: NDArray[np.float64], sizes_of: OfSamples, ids: Ids) -> NDArray[np.int64]:
    """Return how many `borders`, logarithms of aspect ratios, lie below each sample's logarithm: (n,) int64."""
    height, width = sizes_of(ids).T
    found: NDArray[np.int64] = np.searchsorted(borders, np.log(width / height))
    return found


def _in_pieces(count: int) -> Iterator[Ids]:
    for start in range(0, count, AT_A_TIME):
        yield np.arange(start, min(start + AT_A_TIME, count))
