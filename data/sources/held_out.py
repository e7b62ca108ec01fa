"""Holds samples out of training. The content of their images chooses them."""

from dataclasses import replace

import numpy as np
import xxhash
from numpy.typing import NDArray

from data.errors import DataError
from data.keyed_random import mixed, sample_generator
from data.sources.source import Sample, Source

AT_A_TIME = 1 << 16


class Subset:
    """Selects samples of a source and numbers them from 0. The digest covers the selection.

    sample_ids: (n,) int64 in rising order.
    """

    def __init__(self, source: Source, sample_ids: NDArray[np.int64]) -> None:
        self.name = source.name
        self.source, self.sample_ids = source, sample_ids
        self.digest = xxhash.xxh3_128_hexdigest(source.digest.encode() + np.ascontiguousarray(sample_ids).data)

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def counts(self) -> tuple[int, ...]:
        ends = np.searchsorted(self.sample_ids, np.cumsum(self.source.counts))
        return tuple(np.diff(ends, prepend=0).tolist())

    def sample(self, sample_id: int) -> Sample:
        return replace(self.source.sample(int(self.sample_ids[sample_id])), sample_id=sample_id)

    def captions(self, sample_id: int) -> tuple[str, ...]:
        return self.source.captions(int(self.sample_ids[sample_id]))

    def caption_counts(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        return self.source.caption_counts(self.sample_ids[sample_ids])

    def caption_bytes(self, sample_ids: NDArray[np.int64]) -> list[bytes]:
        return self.source.caption_bytes(self.sample_ids[sample_ids])

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        return self.source.sizes(self.sample_ids[sample_ids])

    def content_hashes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.uint8]:
        return self.source.content_hashes(self.sample_ids[sample_ids])


def hold_out(
    source: Source, seed: int, *, share: float | None = None, count: int | None = None
) -> tuple[Source, Source]:
    """Split a source into (training, held-out) samples, each numbered from 0.

    share: hold out the images whose draw is below this share.
    count: hold out this number of images, those with the lowest draws.
    An image's draw depends on `seed` and the bytes of its file alone. With `share`, no other row affects an image. With
    `count`, a new image replaces a held-out one if its draw is lower.
    Rows with the same file, under any name, caption or folder, count as one image and stay together. So `count` may
    hold out more rows than images.
    Raises DataError: when a folder would have no sample left to train on, or no sample would be held out.
    """
    draws = image_draws(source, seed)
    if share is not None:
        held = draws < share * 2.0**64
    else:
        distinct = np.unique(draws)  # in rising order
        held = np.isin(draws, distinct[: count or 0])
    if held.all() or not held.any():
        raise DataError(
            f"{source.name}: {held.sum()} of {len(source)} samples would be held out; take another share or count"
        )
    training = Subset(source, np.flatnonzero(~held))
    if 0 in training.counts:
        raise DataError(
            f"{source.name}: all samples of folder {training.counts.index(0) + 1} would be held out; "
            "take another share, count or seed"
        )
    return training, Subset(source, np.flatnonzero(held))


def image_count(source: Source) -> int:
    """Return the number of distinct images."""
    return len(np.unique(image_draws(source, 0)))


def numbers_in_both(part: Source, whole: Source) -> NDArray[np.int64]:
    """Return the ids of the samples of `part` whose image is also in `whole`, under any name."""
    # One seed's draws serve as hashes: among 2^64 values, a collision by chance is negligible.
    return np.flatnonzero(np.isin(image_draws(part, 0), image_draws(whole, 0)))


def image_draws(source: Source, seed: int) -> NDArray[np.uint64]:
    """Return a keyed hash of each image's `content_hash`, uniform over 0 .. 2^64 - 1: (n,) uint64.

    The hash is mixed(mixed(a ^ k0) ^ b ^ k1). Here a and b are the halves of `content_hash` as little-endian integers,
    and k0 and k1 are the first draws of the seed's stream "hold_out". It never changes, since a run's held-out images
    depend on it.
    """
    keys = sample_generator(seed, "hold_out", 0, 0).integers(0, 2**64, 2, np.uint64)
    draws = np.empty(len(source), np.uint64)
    for start in range(0, len(source), AT_A_TIME):
        ids = np.arange(start, min(start + AT_A_TIME, len(source)))
        first, second = np.ascontiguousarray(source.content_hashes(ids)).view("<u8").T
        draws[ids] = mixed(mixed(first ^ keys[0]) ^ second ^ keys[1])
    return draws
