"""Training samples from a cache: moments of the autoencoder's posterior and text features, instead of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.buckets import Buckets
from data.cache import ABSENT, KEY, Cache, Rows, Spec, entry_keys
from data.config import DataConfig
from data.errors import DataError
from data.fetching import Arrays, ArraySpec
from data.keyed_random import sample_generator
from data.loader import dropped
from data.source import Sample, Source
from data.transforms import flips

SHOWN = 10
VARIANTS = (False, True)  # as it is, and mirrored


@dataclass(frozen=True)
class CacheSpecs:
    """What decides moments beside the image's bytes and its size in training, and text features beside the caption."""

    moments: Spec
    text: Spec

    def moments_at(self, size: tuple[int, int]) -> Spec:
        """All that decides moments of `size`, height and width of the crop in pixels, beside the image's bytes."""
        return {**self.moments, "height": size[0], "width": size[1]}


def moments_keys(specs: CacheSpecs, samples: Sequence[Sample], buckets: Buckets, flipped: bool) -> NDArray[Any]:
    """The keys of samples 0 .. n-1 of `buckets`: (n,) of dtype KEY."""
    variant = "mirrored" if flipped else "plain"
    numbers, keys = buckets.number_of(np.arange(len(samples))), np.empty(len(samples), KEY)
    for number, size in enumerate(buckets.sizes):
        own = np.flatnonzero(numbers == number)
        contents = (f"{samples[sample_id].content_hash}:{variant}" for sample_id in own)
        keys[own] = entry_keys(specs.moments_at(size), contents)
    return keys


@dataclass(frozen=True)
class Entries:
    """Where the samples of a source lie in a cache: rows (n,) of the moments, as they are and with flips mirrored, and
    of the captions; `empty`: the row of the empty caption; `shapes`: of the moments, by the sample's size."""

    cache: Cache
    moments: tuple[Rows, ...]
    captions: Rows
    empty: int
    shapes: dict[tuple[int, int], tuple[int, ...]]

    def read_into(self, sample_id: int, flipped: bool, drop: bool, into: Arrays) -> None:
        """`moments` (2 C, h, w), mean above log-variance, and `features` (tokens, width) of a sample, float32."""
        self.cache.read_into(self.moments[flipped].item(sample_id), into["moments"])
        self.cache.read_into(self.empty if drop else self.captions.item(sample_id), into["features"])


def find_entries(
    cache: Cache, source: Source, specs: CacheSpecs, buckets: Buckets, *, mirrored: bool, remedy: str
) -> Entries:
    """The entries of every sample at the size of its bucket. Raises DataError with the first samples that lack one, and
    `remedy`."""
    samples = [source.sample(number) for number in range(len(source))]
    moments = tuple(cache.find(moments_keys(specs, samples, buckets, flipped)) for flipped in VARIANTS[: 1 + mirrored])
    captions = cache.find(entry_keys(specs.text, (sample.text for sample in samples)))
    empty = cache.find(entry_keys(specs.text, [""]))
    lacks_moments = np.any([rows == ABSENT for rows in moments], axis=0)
    lacking = np.flatnonzero(lacks_moments | (captions == ABSENT))
    if len(lacking) or empty[0] == ABSENT:
        rows = [
            f"  {samples[index].origin}: {'its image' if lacks_moments[index] else 'its caption'}"
            for index in lacking[:SHOWN].tolist()
        ]
        rows += [f"  and {len(lacking) - SHOWN} more"] if len(lacking) > SHOWN else []
        rows += [] if len(lacking) else ["  the empty caption"]
        causes = [f"  {cause}" for cause in _other_settings(cache, specs, buckets)]
        head = f"{cache.folder}: {len(lacking)} of {len(source)} samples have no entry for this recipe; {remedy}:"
        raise DataError("\n".join([head, *rows, *causes]))
    firsts = [buckets.members(number, np.zeros(1, np.int64))[0] for number in buckets.numbers]
    shapes = {size: cache.shape(int(moments[0][first])) for size, first in zip(buckets.sizes, firsts, strict=True)}
    return Entries(cache, moments, captions, int(empty[0]), shapes)


def _other_settings(cache: Cache, specs: CacheSpecs, buckets: Buckets) -> Iterator[str]:
    """Where a cache that has no entry of these specs at all differs: from what it has that is nearest to them."""
    for spec in (*map(specs.moments_at, buckets.sizes), specs.text):
        held = [shard.spec for shard in cache.shards if shard.spec["kind"] == spec["kind"]]
        if held and spec not in held:
            by_keys = [[key for key in spec if spec[key] != each.get(key)] for each in held]
            nearest, keys = min(zip(held, by_keys, strict=True), key=lambda pair: len(pair[1]))
            for key in keys:
                yield f"{spec['kind']} made with {key} {nearest.get(key)}, but the recipe has {spec[key]}"


@dataclass(frozen=True)
class CacheFetcher:
    """`moments` (2 C, h, w) and `features` (tokens, width) of a sample, float32; flips and dropped captions are drawn
    as they are for images."""

    entries: Entries
    config: DataConfig
    seed: int

    def specs(self, size: tuple[int, int]) -> dict[str, ArraySpec]:
        features = self.entries.cache.shape(self.entries.empty)
        return {"moments": ArraySpec(self.entries.shapes[size], "float32"), "features": ArraySpec(features, "float32")}

    def fetch(self, sample_id: int, epoch: int, size: tuple[int, int], into: Arrays) -> None:
        flipped = self.config.horizontal_flip and flips(
            self.config, sample_generator(self.seed, "augment", epoch, sample_id)
        )
        self.entries.read_into(sample_id, flipped, dropped(self.config, self.seed, epoch, sample_id), into)

    def collate(self, arrays: Arrays) -> Arrays:
        return arrays
