"""Batches: the same for any number of ranks and workers, from any start, and loud about failures."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from data import Batch, DataConfig, ImageFetcher, Loader, Source, make_order, open_source
from support import PROGRAMS, PYTHONPATH
from support.programs.deadly_fetcher import DeadlyFetcher

CONFIG = {"resolution": 8, "crop": "random", "horizontal_flip": True, "caption_drop": 0.5}


def loader(
    source: Source, rank: int = 0, world_size: int = 1, start: int = 0, global_batch: int = 4, **changes: object
) -> Loader:
    config = DataConfig.model_validate({"path": source.path, **CONFIG, **changes})
    order = make_order(source, config, 3, global_batch)
    fetcher = ImageFetcher(source, config, 3)
    return Loader(source, fetcher, config, order, rank=rank, world_size=world_size, start_samples_seen=start)


def batches(
    folder: Path, count: int, rank: int = 0, world_size: int = 1, start: int = 0, **changes: object
) -> list[Batch]:
    with loader(open_source(folder), rank, world_size, start, **changes) as made:
        return [next(made) for _ in range(count)]


def test_two_ranks_see_the_halves_of_what_one_sees(folder: Path) -> None:
    whole = batches(folder, 6)
    for one, left, right in zip(whole, batches(folder, 6, 0, 2), batches(folder, 6, 1, 2), strict=True):
        np.testing.assert_array_equal(one.images, np.concatenate((left.images, right.images)))
        np.testing.assert_array_equal(one.sample_ids, np.concatenate((left.sample_ids, right.sample_ids)))
        assert [*one.places] == [*left.places, *right.places] == [0, 1, 2, 3]
        assert one.captions == left.captions + right.captions
        assert one.samples_seen == left.samples_seen == right.samples_seen


def test_workers_make_the_batches_that_the_thread_makes(folder: Path) -> None:
    for expected, found in zip(batches(folder, 9, start=4), batches(folder, 9, start=4, workers=2), strict=True):
        assert found.arrays.keys() == expected.arrays.keys() == {"images", "original_sizes", "crops"}
        for name, array in expected.arrays.items():
            np.testing.assert_array_equal(found.arrays[name], array)
        assert (found.captions, found.samples_seen) == (expected.captions, expected.samples_seen)


@pytest.mark.parametrize("workers", [0, 1])
def test_buckets_give_batches_of_several_shapes(tmp_path: Path, workers: int) -> None:
    lines = ["dir,text"]
    for number in range(24):
        Image.new("RGB", (80, 40) if number % 3 else (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,x")
    (tmp_path / "a.csv").write_text("\n".join(lines) + "\n")
    buckets = {"multiple_px": 8, "max_aspect": 2}
    made = batches(tmp_path, 6, workers=workers, resolution=32, buckets=buckets)
    assert sorted(batch.images.shape[2:] for batch in made) == [(24, 40)] * 4 + [(32, 32)] * 2
    for batch in made:
        wide = batch.images.shape[2] == 24
        np.testing.assert_array_equal(batch.arrays["original_sizes"], [(40, 80) if wide else (40, 40)] * 4)
        reds = np.rint((batch.images[:, 0, 0, 0] + 1) * 127.5)
        np.testing.assert_array_equal(reds, batch.sample_ids)
        assert (batch.arrays["crops"][:, 0] == 0).all()  # (24, 40) of (24, 48): across alone
        assert (batch.arrays["crops"][:, 1] <= 8).all()


def test_resuming_gives_the_batches_that_would_have_come(folder: Path) -> None:
    whole = batches(folder, 7)
    rest = batches(folder, 4, start=12)
    for expected, found in zip(whole[3:], rest, strict=True):
        np.testing.assert_array_equal(expected.images, found.images)
        assert (expected.captions, expected.samples_seen) == (found.captions, found.samples_seen)


def test_a_micro_batch_is_a_part_of_all_arrays(folder: Path) -> None:
    (batch,) = batches(folder, 1)
    second = batch.part(1, 2)
    np.testing.assert_array_equal(second.images, batch.images[2:])
    np.testing.assert_array_equal(second.arrays["crops"], batch.arrays["crops"][2:])
    assert second.captions == batch.captions[2:]


def test_captions_are_dropped_at_the_asked_rate(folder: Path) -> None:
    captions = [caption for batch in batches(folder, 100) for caption in batch.captions]
    assert 0.4 < captions.count("") / len(captions) < 0.6


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_vanishes_is_an_error_that_names_the_sample(folder: Path, workers: int) -> None:
    source = open_source(folder)
    (folder / "4.png").unlink()
    with (
        loader(source, global_batch=7, workers=workers) as made,
        pytest.raises(RuntimeError, match=r"sample 4 \(img_txt\.csv:6") as caught,
    ):
        next(made)
    assert "No such file" in str(caught.value.__cause__)


def test_a_failure_is_told_to_who_asks_again(folder: Path) -> None:
    source = open_source(folder)
    (folder / "4.png").unlink()
    with loader(source, global_batch=7) as made:
        for _ in range(3):
            with pytest.raises(RuntimeError, match="sample 4"):
                next(made)


def with_deadly_fetcher(folder: Path, monkeypatch: pytest.MonkeyPatch, **changes: bool) -> Loader:
    monkeypatch.setenv("PYTHONPATH", PYTHONPATH)  # where the workers find the fetcher
    source = open_source(folder)
    config = DataConfig(path=folder, resolution=8, workers=2)
    order = make_order(source, config, 3, 7)
    return Loader(source, DeadlyFetcher(**changes), config, order, rank=0, world_size=1, start_samples_seen=0)


def test_a_dead_worker_is_an_error_that_names_the_sample(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        with_deadly_fetcher(folder, monkeypatch) as made,
        pytest.raises(RuntimeError, match=r"sample 2 \(img_txt\.csv:4.*worker process \d+.* was ended by signal 9"),
    ):
        next(made)


def test_closing_ends_the_thread_and_a_worker_that_is_stuck(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = time.monotonic()
    with with_deadly_fetcher(folder, monkeypatch, stuck=True):
        time.sleep(1)
        workers = [each for each in psutil.Process().children() if "data.loading.worker" in each.cmdline()]
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    assert time.monotonic() - started < 60
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_no_worker_outlives_a_killed_rank(folder: Path) -> None:
    argv = [sys.executable, str(PROGRAMS / "deadly_fetcher.py"), str(folder)]
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with subprocess.Popen(argv, stdout=subprocess.PIPE, env=environment) as rank:
        assert rank.stdout
        assert rank.stdout.readline() == b"ready\n"
        workers = psutil.Process(rank.pid).children()
        assert len(workers) == 2
        rank.kill()
        assert psutil.wait_procs(workers, timeout=60)[1] == []
