"""Several folders, each with a weight, as one source."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from data import Batch, DataConfig, ImageFetcher, Joined, Loader, hold_out, join, make_order, open_source

WEIGHTS = (2.0, 0.5)


@pytest.fixture
def folders(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Seven images and, in another folder, the same with a grey one of another shape and a bad row behind."""
    other = tmp_path_factory.mktemp("other")
    shutil.copytree(folder, other, dirs_exist_ok=True)
    Image.new("RGB", (20, 9), "grey").save(other / "7.png")
    with (other / "img_txt.csv").open("a") as table:
        table.write("7.png,grey\nnone.png,nothing\n")
    return folder, other


def joined(folders: tuple[Path, Path]) -> Joined:
    source = join([open_source(path, "skip") for path in folders])
    assert isinstance(source, Joined)
    return source


def test_the_folders_lie_one_behind_the_other(folders: tuple[Path, Path]) -> None:
    source, parts = joined(folders), [open_source(path, "skip") for path in folders]
    assert (len(source), source.counts) == (15, (7, 8))
    assert [source.sample(number).sample_id for number in range(15)] == list(range(15))
    alone = [part.sample(number) for part in parts for number in range(len(part))]
    sizes = source.sizes(np.arange(15))
    for number, expected in enumerate(alone):
        found = source.sample(number)
        assert (found.text, found.read(), found.content_hash) == (expected.text, expected.read(), expected.content_hash)
        assert tuple(sizes[number]) == (found.width, found.height)
        assert bytes(source.content_hashes(np.array([number]))[0]).hex() == found.content_hash
    assert source.sample(6).origin == f"{folders[0]}/img_txt.csv:8"
    assert source.sample(7).origin == f"{folders[1]}/img_txt.csv:2"
    ((origin, reason),) = source.bad
    assert origin == f"{folders[1]}/img_txt.csv:10"
    assert "none.png" in reason
    with pytest.raises(IndexError):
        source.sample(15)


def test_one_folder_alone_is_that_folder(folder: Path) -> None:
    source = open_source(folder)
    assert join([source]) is source


def test_held_out_samples_of_a_folder_stay_when_another_grows(folders: tuple[Path, Path]) -> None:
    def held_out() -> tuple[tuple[int, ...], set[str]]:
        training, held = hold_out(joined(folders), 1, share=0.3)
        assert np.add(training.counts, held.counts).tolist() == [*joined(folders).counts]
        samples = [held.sample(number) for number in range(len(held))]
        return held.counts, {f"{sample.place.path}" for sample in samples}

    counts, before = held_out()
    assert min(counts) > 0
    with (folders[0] / "img_txt.csv").open("a") as table:
        for number in range(10, 30):
            shutil.copy(folders[0] / "0.png", folders[0] / f"{number}.png")
            table.write(f"{number}.png,another\n")
    grown, after = held_out()
    assert joined(folders).counts == (27, 8)
    assert grown[1] == counts[1]
    assert {path for path in before if path.startswith(str(folders[1]))} <= after


def batches(
    folders: tuple[Path, Path], rank: int = 0, world_size: int = 1, start: int = 0, workers: int = 0
) -> list[Batch]:
    given = [{"path": path, "weight": weight} for path, weight in zip(folders, WEIGHTS, strict=True)]
    config = DataConfig.model_validate(
        {"sources": given, "resolution": 8, "crop": "random", "horizontal_flip": True, "workers": workers}
    )
    source = joined(folders)
    order = make_order(source, config, 3, 6)
    assert order.taken_per_epoch == [14, 4]
    fetcher = ImageFetcher(source, config, 3)
    with Loader(source, fetcher, config, order, rank=rank, world_size=world_size, start_samples_seen=start) as made:
        return [next(made) for _ in range(6 - start // 6)]


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_mix_by_weight_and_are_the_same_for_any_ranks_and_start(
    folders: tuple[Path, Path], workers: int
) -> None:
    whole = batches(folders)  # two epochs of 18
    sample_ids = np.concatenate([batch.sample_ids for batch in whole])
    times = np.bincount(sample_ids, minlength=15)
    assert times.tolist() == [4] * 7 + [1] * 8
    assert all((batch.sample_ids < 7).sum() > 0 for batch in whole)
    for rank in (0, 1):
        for expected, found in zip(whole[2:], batches(folders, rank, 2, start=12, workers=workers), strict=True):
            own = slice(3 * rank, 3 * rank + 3)
            np.testing.assert_array_equal(found.images, expected.images[own])
            assert found.captions == expected.captions[own]
    # A sample that comes again is cropped and flipped anew.
    looks = np.concatenate([batch.images for batch in whole])
    assert any(len(np.unique(looks[sample_ids == number], axis=0)) > 1 for number in range(7))


@pytest.mark.parametrize(
    ("section", "place", "message"),
    [
        ({}, ("path",), "Field required"),
        ({"path": "a", "sources": [{"path": "b"}]}, ("path",), "there are data.sources too; give one of them"),
        ({"sources": [{"path": "a"}, {"path": "a", "weight": 2}]}, ("sources",), "a is there twice; give it once"),
        ({"sources": [{"path": "a", "weight": 0}]}, ("sources", 0, "weight"), "greater than 0"),
        (
            {"sources": [{"path": "a", "weight": float("inf")}]},
            ("sources", 0, "weight"),
            "less than or equal to 1000000",
        ),
    ],
)
def test_what_is_wrong_with_the_section_is_told(
    section: dict[str, object], place: tuple[str | int, ...], message: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate({**section, "resolution": 8})
    (error,) = caught.value.errors()
    assert error["loc"] == place
    assert message in error["msg"]
