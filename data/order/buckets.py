"""Aspect buckets: images of unlike shapes are trained on at sizes of about one area (NovelAI 2022)."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import BucketsConfig, DataConfig
from data.sources.source import Source

BLOCK = 1024  # samples
AT_A_TIME = 64 * BLOCK

Ids = NDArray[np.int64]
OfSamples = Callable[[Ids], NDArray[Any]]  # sample ids (n,) -> something of each


class Buckets:
    """The sizes, (height, width) in pixels, and which samples have which.

    No list of samples is kept: `number_of` tells the buckets (n,) of samples from the sizes of their images, and a
    table how many of a bucket come before each block of samples. For seven buckets these are 28 bytes for 1024 samples.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], count: int, number_of: OfSamples) -> None:
        self.sizes, self.count, self.number_of = tuple(sizes), count, number_of

    @property
    def numbers(self) -> range:
        """Of the buckets."""
        return range(len(self.sizes))

    @cached_property
    def _before(self) -> NDArray[np.uint32]:
        """(buckets, blocks + 1): how many of a bucket's samples come before each block, and how many there are."""
        buckets = len(self.sizes)
        before = np.zeros((buckets, -(-self.count // BLOCK) + 1), np.uint32)
        for ids in _in_pieces(self.count):
            first, last = int(ids[0]) // BLOCK, int(ids[-1]) // BLOCK
            cells = (ids // BLOCK - first) * buckets + self.number_of(ids)
            in_block = np.bincount(cells, minlength=(last - first + 1) * buckets)
            before[:, first + 1 : last + 2] = in_block.reshape(-1, buckets).T
        return np.cumsum(before, axis=1, dtype=before.dtype, out=before)

    def below(self, number: int, sample_id: int) -> int:
        """How many samples of a bucket come before `sample_id`."""
        block = sample_id // BLOCK
        rest = self.number_of(np.arange(block * BLOCK, sample_id))
        return int(self._before[number, block]) + int((rest == number).sum())

    def members(self, number: int, places: Ids) -> Ids:
        """The ids (n,) of a bucket's samples at `places` (n,), counted from 0 in the order of their ids."""
        before = self._before[number]
        blocks = np.searchsorted(before, places.astype(before.dtype), side="right") - 1
        found = np.empty_like(places)
        for block in np.unique(blocks):
            start, own = int(block) * BLOCK, blocks == block
            ids = np.arange(start, min(start + BLOCK, self.count))
            found[own] = ids[self.number_of(ids) == number][places[own] - int(before[block])]
        return found

    def describe(self) -> str:
        """Every size, width x height in pixels, and how many samples it has."""
        return ", ".join(f"{w} x {h}: {n}" for (h, w), n in zip(self.sizes, self._before[:, -1], strict=True))


def one_bucket(size: tuple[int, int], count: int) -> Buckets:
    """All samples at one size, (height, width) in pixels."""
    return Buckets([size], count, lambda ids: np.zeros(len(ids), np.int64))


def buckets_of(source: Source, config: DataConfig, global_batch: int) -> Buckets:
    """The sizes that a source's samples are trained at."""
    if config.buckets is None:
        return one_bucket((config.resolution, config.resolution), len(source))
    return make_buckets(config.buckets, config.resolution, len(source), source.sizes, global_batch)


def make_buckets(config: BucketsConfig, resolution: int, count: int, sizes_of: OfSamples, global_batch: int) -> Buckets:
    """The buckets of `count` images; `sizes_of` tells those (n, 2) of samples, width and height in pixels.

    Each image goes to the size whose aspect ratio is nearest to its own, as a ratio of ratios. A size with fewer images
    than a global batch, and beyond `config.max_shapes` the one with the fewest, is given up and its images go to the
    nearest that is left.
    """
    candidates = bucket_sizes(resolution, config.multiple_px, config.max_aspect)
    aspects = np.log([width / height for height, width in candidates])
    # Of all borders that there may be in the end, so that the images are looked at but once.
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


def bucket_sizes(resolution: int, multiple_px: int, max_aspect: float) -> Sequence[tuple[int, int]]:
    """(height, width) in pixels, the tallest first: for each width that is a multiple of `multiple_px` the height that
    brings the area nearest to resolution^2, within `max_aspect` either way."""
    area, found = resolution**2, set()
    for short in range(multiple_px, resolution + multiple_px, multiple_px):
        long = max(multiple_px, multiple_px * round(area / short / multiple_px))
        if max(short, long) <= max_aspect * min(short, long):
            found |= {(short, long), (long, short)}
    return sorted(found, key=lambda size: math.log(size[1] / size[0]))


def _nearest(borders: NDArray[np.float64], sizes_of: OfSamples, ids: Ids) -> NDArray[np.int64]:
    """Between which logarithms of aspect ratios those of samples lie: how many `borders` are below, (n,)."""
    width, height = sizes_of(ids).T
    found: NDArray[np.int64] = np.searchsorted(borders, np.log(width / height))
    return found


def _in_pieces(count: int) -> Iterator[Ids]:
    for start in range(0, count, AT_A_TIME):
        yield np.arange(start, min(start + AT_A_TIME, count))
