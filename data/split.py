"""Samples that are kept from training, chosen by a keyed draw for each sample id."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.errors import DataError
from data.keyed_random import sample_generator
from data.source import Sample, Source


class Subset:
    """These samples of a source, (n,) ids in rising order, numbered anew from 0."""

    def __init__(self, source: Source, sample_ids: NDArray[np.intp]) -> None:
        self.name, self.digest = source.name, source.digest
        self.source, self.sample_ids = source, sample_ids

    def __len__(self) -> int:
        return len(self.sample_ids)

    @property
    def counts(self) -> tuple[int, ...]:
        ends = np.searchsorted(self.sample_ids, np.cumsum(self.source.counts))
        return tuple(np.diff(ends, prepend=0).tolist())

    def sample(self, sample_id: int) -> Sample:
        return replace(self.source.sample(int(self.sample_ids[sample_id])), sample_id=sample_id)

    def text(self, sample_id: int) -> str:
        return self.source.text(int(self.sample_ids[sample_id]))

    def sizes(self, sample_ids: NDArray[np.int64]) -> NDArray[np.int32]:
        return self.source.sizes(self.sample_ids[sample_ids])

    @property
    def content_hashes(self) -> NDArray[np.uint8]:
        return self.source.content_hashes[self.sample_ids]


def hold_out(
    source: Source, seed: int, *, share: float | None = None, count: int | None = None
) -> tuple[Source, Source]:
    """(training, held-out) samples, each numbered anew from 0. Held out are draws below `share`, or the `count` lowest.

    A sample's draw depends on `seed`, its folder's place and its own place there alone. Raises DataError when no sample
    of a folder would be left to train on, or none held out.
    """
    # Counter-based streams: the i-th number is the same however many are drawn, so rows added at a folder's end move
    # none.
    draws = np.concatenate(
        [sample_generator(seed, "hold_out", 0, number).random(count) for number, count in enumerate(source.counts)]
    )
    held = draws < share if share is not None else draws.argsort().argsort() < (count or 0)
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
