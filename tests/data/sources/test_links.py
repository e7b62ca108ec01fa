"""Folders of links: a snapshot in Hugging Face's cache is one, and no link leads out of it."""

import hashlib
import os
from pathlib import Path

import pytest

from data import DataError, open_source
from support.images.folders import CAPTIONS, FORMATS, images


def snapshot_of(folder: Path, repository: Path) -> Path:
    """The folder's files as huggingface_hub keeps them: REPOSITORY/snapshots/REVISION/..., links to its blobs."""
    revision = repository / "snapshots" / "0123abc"
    (repository / "blobs").mkdir(parents=True)
    for path in folder.rglob("*"):
        if path.is_file():
            blob = repository / "blobs" / hashlib.sha256(path.read_bytes()).hexdigest()
            blob.write_bytes(path.read_bytes())
            link = revision / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return revision


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("below", ["", "train"])
def test_a_snapshot_is_a_folder_of_any_format(name: str, below: str, tmp_path: Path) -> None:
    (tmp_path / "set" / below).mkdir(parents=True)
    FORMATS[name][0](tmp_path / "set" / below)
    folder = snapshot_of(tmp_path / "set", tmp_path / "hub" / "datasets--me--set") / below
    (tmp_path / "link").symlink_to(folder)
    for path in (folder, tmp_path / "link"):
        source = open_source(path)
        assert [source.sample(number).read() for number in range(3)] == images()
        assert [source.sample(number).text for number in range(3)] == [*CAPTIONS]
    assert source.digest == open_source(tmp_path / "set" / below).digest


@pytest.mark.parametrize("target", ["/etc/hostname", "{}/outside.png", "../../refs/main", "../../../other/blobs/x"])
def test_an_image_outside_of_the_cache_is_none(target: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    FORMATS["csv"][0](tmp_path / "set")
    folder = snapshot_of(tmp_path / "set", tmp_path / "hub" / "datasets--me--set")
    for other in (
        tmp_path / "outside.png",
        tmp_path / "hub/datasets--me--set/refs/main",
        tmp_path / "hub/other/blobs/x",
    ):
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_bytes(images()[0])
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(target.format(tmp_path))
    assert open_source(folder, "tell").bad == [("img_txt.csv:2", "0.png leaves the folder; give a path below it")]


def test_blobs_are_a_cache_beside_snapshots_alone(tmp_path: Path) -> None:
    """A folder that is no snapshot has no blobs, nor do blobs lead on elsewhere."""
    (tmp_path / "set").mkdir()
    FORMATS["csv"][0](tmp_path / "set")
    folder = snapshot_of(tmp_path / "set", tmp_path / "hub" / "me")
    (tmp_path / "hub" / "me" / "snapshots").rename(tmp_path / "hub" / "me" / "versions")
    with pytest.raises(DataError, match=r"img_txt\.csv: is a link that leaves the folder; give the folder"):
        open_source(tmp_path / "hub" / "me" / "versions" / folder.name)
    (tmp_path / "hub" / "me" / "versions").rename(tmp_path / "hub" / "me" / "snapshots")
    (tmp_path / "hub" / "me" / "blobs").rename(tmp_path / "elsewhere")
    (tmp_path / "hub" / "me" / "blobs").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"img_txt\.csv: is a link that leaves the folder; give the folder"):
        open_source(folder)


@pytest.mark.parametrize("name", FORMATS)
def test_a_table_outside_of_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    FORMATS[name][0](tmp_path / "set")
    table = next(path for path in (tmp_path / "set").iterdir() if path.suffix in (".csv", ".jsonl", ".tar", ".parquet"))
    table.rename(tmp_path / table.name)
    table.symlink_to(tmp_path / table.name)
    with pytest.raises(DataError, match=rf"^{table}: is a link that leaves the folder; give the folder that it leads"):
        open_source(tmp_path / "set")
