"""Batches: the same for any number of ranks, from any start, and loud about failures."""

import threading
from pathlib import Path

import numpy as np
import pytest

from data import Batch, DataConfig, Loader, open_source


def batches(folder: Path, count: int, rank: int = 0, world_size: int = 1, start: int = 0) -> list[Batch]:
    config = DataConfig(path=folder, resolution=8, crop="random", horizontal_flip=True, caption_drop=0.5)
    with Loader(
        open_source(folder),
        config,
        seed=3,
        global_batch=4,
        rank=rank,
        world_size=world_size,
        start_samples_seen=start,
    ) as loader:
        return [next(loader) for _ in range(count)]


def test_two_ranks_see_the_halves_of_what_one_sees(folder: Path) -> None:
    whole = batches(folder, 6)
    for one, left, right in zip(whole, batches(folder, 6, 0, 2), batches(folder, 6, 1, 2), strict=True):
        np.testing.assert_array_equal(one.images, np.concatenate((left.images, right.images)))
        np.testing.assert_array_equal(one.sample_ids, np.concatenate((left.sample_ids, right.sample_ids)))
        assert [*one.places] == [*left.places, *right.places] == [0, 1, 2, 3]
        assert one.captions == left.captions + right.captions
        assert one.samples_seen == left.samples_seen == right.samples_seen


def test_resuming_gives_the_batches_that_would_have_come(folder: Path) -> None:
    whole = batches(folder, 7)
    rest = batches(folder, 4, start=12)
    for expected, found in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(expected.images, found.images)
        assert (expected.captions, expected.samples_seen) == (found.captions, found.samples_seen)


def test_captions_are_dropped_at_the_asked_rate(folder: Path) -> None:
    captions = [caption for batch in batches(folder, 100) for caption in batch.captions]
    assert 0.4 < captions.count("") / len(captions) < 0.6


def test_a_file_that_vanishes_is_an_error_that_names_the_sample(folder: Path) -> None:
    source = open_source(folder)
    (folder / "4.png").unlink()
    config = DataConfig(path=folder, resolution=8)
    with (
        Loader(source, config, seed=0, global_batch=7, rank=0, world_size=1, start_samples_seen=0) as loader,
        pytest.raises(RuntimeError, match=r"sample 4 \(img_txt\.csv:6"),
    ):
        next(loader)


def test_closing_ends_the_thread(folder: Path) -> None:
    batches(folder, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]
