"""Aspect buckets: images of unlike shapes are trained on at sizes of about one area (NovelAI 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import BucketsConfig


@dataclass(frozen=True)
class Buckets:
    """`sizes`: height and width in pixels of each bucket; `of_sample` (n,) uint8: the bucket of each sample, empty
    when there is but one."""

    sizes: tuple[tuple[int, int], ...]
    of_sample: NDArray[np.uint8]

    @property
    def numbers(self) -> range:
        """Of the buckets."""
        return range(len(self.sizes))

    def describe(self) -> str:
        """Every size, width x height in pixels, and how many samples it has."""
        counts = np.bincount(self.of_sample, minlength=len(self.sizes))
        return ", ".join(f"{w} x {h}: {n}" for (h, w), n in zip(self.sizes, counts, strict=True))


def one_bucket(resolution: int) -> Buckets:
    """Square images alone."""
    return Buckets(((resolution, resolution),), np.zeros(0, np.uint8))


def make_buckets(config: BucketsConfig, resolution: int, sizes: NDArray[np.int32], global_batch: int) -> Buckets:
    """The buckets of images of `sizes` (n, 2), width and height in pixels.

    Each image goes to the size whose aspect ratio is nearest to its own, as a ratio of ratios. A size with fewer images
    than a global batch, and beyond `config.max_shapes` the one with the fewest, is given up and its images go to the
    nearest that is left.
    """
    candidates = bucket_sizes(resolution, config.multiple_px, config.max_aspect)
    aspects = np.log([width / height for height, width in candidates])
    kept = np.arange(len(candidates))
    of_image = np.log(sizes[:, 0] / sizes[:, 1])
    while True:
        borders = (aspects[kept][1:] + aspects[kept][:-1]) / 2
        nearest = np.searchsorted(borders, of_image)
        counts = np.bincount(nearest, minlength=len(kept))
        if len(kept) == 1:
            return Buckets((candidates[kept[0]],), np.zeros(0, np.uint8))
        if counts.min() >= global_batch and len(kept) <= config.max_shapes:
            return Buckets(tuple(candidates[number] for number in kept), nearest.astype(np.uint8))
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
