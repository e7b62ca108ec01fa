"""Training samples from a cache: moments of the autoencoder's posterior and text features, instead of images."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.cache import ABSENT, Cache, Rows, Spec, entry_keys
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
    """What decides moments beside the image's bytes, and text features beside the caption."""

    moments: Spec
    text: Spec


def moments_keys(spec: Spec, samples: Sequence[Sample], flipped: bool) -> NDArray[np.void]:
    """The keys of images (n,)."""
    return entry_keys(spec, (f"{sample.content_hash}:{'mirrored' if flipped else 'plain'}" for sample in samples))


@dataclass(frozen=True)
class Entries:
    """Where the samples of a source lie in a cache: rows (n,) of the moments, as they are and with flips mirrored, and
    of the captions; `empty`: the row of the empty caption."""

    cache: Cache
    moments: tuple[Rows, ...]
    captions: Rows
    empty: int

    def read_into(self, sample_id: int, flipped: bool, drop: bool, into: Arrays) -> None:
        """`moments` (2 C, h, w), mean above log-variance, and `features` (tokens, width) of a sample, float32."""
        self.cache.read_into(int(self.moments[flipped][sample_id]), into["moments"])
        self.cache.read_into(self.empty if drop else int(self.captions[sample_id]), into["features"])


def find_entries(cache: Cache, source: Source, specs: CacheSpecs, *, mirrored: bool, remedy: str) -> Entries:
    """The entries of every sample. Raises DataError with the first samples that lack one, and `remedy`."""
    samples = [source.sample(number) for number in range(len(source))]
    moments = tuple(cache.find(moments_keys(specs.moments, samples, flipped)) for flipped in VARIANTS[: 1 + mirrored])
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
        causes = [f"  {cause}" for cause in _other_settings(cache, specs)]
        head = f"{cache.folder}: {len(lacking)} of {len(source)} samples have no entry for this recipe; {remedy}:"
        raise DataError("\n".join([head, *rows, *causes]))
    return Entries(cache, moments, captions, int(empty[0]))


def _other_settings(cache: Cache, specs: CacheSpecs) -> Iterator[str]:
    """Where a cache that has no entry of these specs at all differs: from what it has that is nearest to them."""
    for spec in (specs.moments, specs.text):
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
        moments, features = self.entries.moments[0][0], self.entries.empty
        shape = self.entries.cache.shape
        return {"moments": ArraySpec(shape(moments), "float32"), "features": ArraySpec(shape(features), "float32")}

    def fetch(self, sample_id: int, epoch: int, size: tuple[int, int], into: Arrays) -> None:
        flipped = self.config.horizontal_flip and flips(
            self.config, sample_generator(self.seed, "augment", epoch, sample_id)
        )
        self.entries.read_into(sample_id, flipped, dropped(self.config, self.seed, epoch, sample_id), into)

    def collate(self, arrays: Arrays) -> Arrays:
        return arrays
