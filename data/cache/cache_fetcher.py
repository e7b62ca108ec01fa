"""Makes training samples from a cache: moments of the autoencoder's posterior and text features, not images."""

from binascii import hexlify
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.cache.cache import ABSENT, Cache, Rows, Table, make_table
from data.cache.entries import Entries
from data.cache.shards import Spec, encoded_keys, entry_keys
from data.config import DataConfig
from data.errors import DataError
from data.images.size import Size
from data.images.transforms import flips
from data.keyed_random import sample_generator
from data.loading.fetcher import Arrays, ArraySpec
from data.loading.loader import dropped
from data.order.buckets import Buckets
from data.sources.captions import drawn_caption
from data.sources.source import Source

SHOWN = 10
VARIANTS = (False, True)  # whether an image is mirrored
AT_A_TIME = 1 << 14  # samples
HEX_DIGITS = 32  # of a content hash

Keys = NDArray[np.void]


@dataclass(frozen=True)
class CacheSpecs:
    """Declares what determines cached entries.

    moments: what determines moments besides the image's bytes and its training size.
    text: what determines text features besides the caption.
    """

    moments: Spec
    text: Spec

    def moments_at(self, size: Size) -> Spec:
        """Return all that determines moments besides the image's bytes, at the crop's `size`."""
        return {**self.moments, "height": size.height, "width": size.width}


def image_keys(specs: CacheSpecs, hashes: NDArray[np.uint8], size: Size, flipped: bool) -> Keys:
    """Return the keys of images at `size`, from their content hashes (n, 16): (n,) of dtype KEY."""
    variant, digits = b":mirrored" if flipped else b":plain", hexlify(hashes.tobytes())
    places = range(0, len(digits), HEX_DIGITS)
    return encoded_keys(specs.moments_at(size), (digits[place : place + HEX_DIGITS] + variant for place in places))


def pieces(count: int) -> Iterator[NDArray[np.int64]]:
    """Yield the ids of `count` samples, AT_A_TIME at a time, which takes little memory."""
    for start in range(0, count, AT_A_TIME):
        yield np.arange(start, min(start + AT_A_TIME, count))


def find_entries(
    cache: Cache, source: Source, specs: CacheSpecs, buckets: Buckets, *, mirrored: bool, remedy: str
) -> Entries:
    """Find the entries of every sample at its bucket's size, and of each of its captions.

    Raises DataError, which names the first such samples and `remedy`: when samples lack an entry.
    """
    moments = _find_moments(cache, source, specs, buckets, VARIANTS[: 1 + mirrored])
    captions, ends, empty = _find_captions(cache, source, specs)
    lacks_moments = np.any([rows == ABSENT for rows in moments], axis=0)
    lacks_caption = np.logical_or.reduceat(captions == ABSENT, ends - np.diff(ends, prepend=0))
    lacking = np.flatnonzero(lacks_moments | lacks_caption)
    if len(lacking) or empty == ABSENT:
        rows = [
            f"  {source.sample(index).origin}: {'its image' if lacks_moments[index] else 'its caption'}"
            for index in lacking[:SHOWN].tolist()
        ]
        rows += [f"  and {len(lacking) - SHOWN} more"] if len(lacking) > SHOWN else []
        rows += [] if len(lacking) else ["  the empty caption"]
        causes = [f"  {cause}" for cause in _other_settings(cache, specs, buckets)]
        head = f"{cache.folder}: {len(lacking)} of {len(source)} samples have no entry for this recipe; {remedy}:"
        raise DataError("\n".join([head, *rows, *causes]))
    firsts = [buckets.members(number, np.zeros(1, np.int64))[0] for number in buckets.numbers]
    shapes = {size: cache.shape(int(moments[0][first])) for size, first in zip(buckets.sizes, firsts, strict=True)}
    return Entries(cache, moments, captions, ends if len(ends) < len(captions) else None, empty, shapes)


def _find_moments(
    cache: Cache, source: Source, specs: CacheSpecs, buckets: Buckets, variants: tuple[bool, ...]
) -> tuple[Rows, ...]:
    """Return the rows (n,) of all samples' moments, for each variant."""
    tables = [cache.table(specs.moments_at(size)) for size in buckets.sizes]
    found = tuple(np.empty(len(source), np.int32) for _ in variants)
    for ids in pieces(len(source)):
        numbers, hashes = buckets.number_of(ids), source.content_hashes(ids)
        for number, (size, table) in enumerate(zip(buckets.sizes, tables, strict=True)):
            own = numbers == number
            for rows, flipped in zip(found, variants, strict=True):
                rows[ids[own]] = table.find(image_keys(specs, hashes[own], size, flipped))
    return found


def _find_captions(cache: Cache, source: Source, specs: CacheSpecs) -> tuple[Rows, NDArray[np.int64], int]:
    """Return the rows (c,) of all captions, where each sample's end in them (n,), and the empty caption's row."""
    table = cache.table(specs.text)
    ends = np.cumsum(np.concatenate([source.caption_counts(ids) for ids in pieces(len(source))]))
    rows = np.empty(int(ends[-1]), np.int32)
    for ids in pieces(len(source)):
        start = int(ends[ids[0] - 1]) if ids[0] else 0
        rows[start : int(ends[ids[-1]])] = table.find(encoded_keys(specs.text, source.caption_bytes(ids)))
    return rows, ends, int(table.find(entry_keys(specs.text, [""]))[0])


def table_of(specs: CacheSpecs, source: Source, entries: Entries, size: Size) -> Table:
    """Return the table of a source's images at `size`, unflipped, and of their captions."""
    every = np.arange(len(source))
    images = image_keys(specs, source.content_hashes(every), size, flipped=False)
    captions = encoded_keys(specs.text, source.caption_bytes(every))
    return make_table(np.concatenate([images, captions]), np.concatenate([entries.moments[0], entries.captions]))


def _other_settings(cache: Cache, specs: CacheSpecs, buckets: Buckets) -> Iterator[str]:
    """Yield how the cache's nearest spec differs from each of these specs of which the cache has no entry."""
    for spec in (*map(specs.moments_at, buckets.sizes), specs.text):
        held = [held for held in cache.specs if held["kind"] == spec["kind"]]
        if held and spec not in held:
            by_keys = [[key for key in spec if spec[key] != each.get(key)] for each in held]
            nearest, keys = min(zip(held, by_keys, strict=True), key=lambda pair: len(pair[1]))
            for key in keys:
                yield f"{spec['kind']} made with {key} {nearest.get(key)}, but the recipe has {spec[key]}"


@dataclass(frozen=True)
class CacheFetcher:
    """Fetches `moments` (2 C, h, w) float32 and `features` (tokens, width) float32 of a sample.

    Flips, dropped captions and the choice among several captions are drawn as they are for images.
    """

    entries: Entries
    config: DataConfig
    seed: int

    def specs(self, size: Size) -> dict[str, ArraySpec]:
        features = self.entries.cache.shape(self.entries.empty)
        return {"moments": ArraySpec(self.entries.shapes[size], "float32"), "features": ArraySpec(features, "float32")}

    def fetch(self, sample_id: int, epoch: int, size: Size, into: Arrays) -> None:
        entries = self.entries
        flipped = self.config.horizontal_flip and flips(
            self.config, sample_generator(self.seed, "augment", epoch, sample_id)
        )
        caption = None
        if not dropped(self.config, self.seed, epoch, sample_id):
            caption = drawn_caption(entries.caption_count(sample_id), self.seed, epoch, sample_id)
        entries.read_into(sample_id, flipped, caption, into)

    def collate(self, arrays: Arrays) -> Arrays:
        return arrays
