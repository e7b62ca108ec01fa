"""Samples that are kept from training, chosen by a keyed draw for each sample id."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.csv_source import Source
from data.errors import DataError
from data.keyed_random import sample_generator


def hold_out(
    source: Source, seed: int, *, share: float | None = None, count: int | None = None
) -> tuple[Source, Source]:
    """(training, held-out) samples, each numbered anew from 0. Held out are draws below `share`, or the `count` lowest.

    A sample's draw depends on `seed` and its id alone. Raises DataError when either part would be empty.
    """
    # A counter-based stream: its i-th number is the same however many are drawn, so rows added at the end move none.
    draws = sample_generator(seed, "hold_out", 0, 0).random(len(source))
    held = draws < share if share is not None else draws.argsort().argsort() < (count or 0)
    if held.all() or not held.any():
        raise DataError(
            f"{source.path}: {held.sum()} of {len(source)} samples would be held out; take another share or count"
        )
    return subset(source, np.flatnonzero(~held)), subset(source, np.flatnonzero(held))


def subset(source: Source, sample_ids: NDArray[np.intp]) -> Source:
    """These samples, numbered anew."""
    samples = (replace(source.sample(int(old)), sample_id=new) for new, old in enumerate(sample_ids))
    return Source(source.path, tuple(samples))
