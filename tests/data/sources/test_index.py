"""The index: what makes it new, what it spares, and that it is never believed against the files."""

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from data import DataError, Folder, open_source
from data.files import INDEX_NAME
from data.images.decode import FORMATS
from data.sources import index_builder as indexing
from data.sources import scan
from data.sources.index_file import read_index


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The images that are decoded from now on."""
    found: list[bytes] = []
    real = scan.decode_sized

    def record(content: bytes, **options: object) -> tuple[Image.Image, tuple[int, int]]:
        found.append(content)
        return real(content, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(scan, "decode_sized", record)
    return found


def test_a_second_start_decodes_nothing(folder: Path, decoded: list[bytes]) -> None:
    first = open_source(folder)
    assert len(decoded) == 7
    again = open_source(folder)
    assert len(decoded) == 7
    assert again.index.path == folder / INDEX_NAME
    assert [again.sample(n) for n in range(7)] == [first.sample(n) for n in range(7)]


@pytest.mark.parametrize("files_per_process", [indexing.FILES_PER_PROCESS, 3])
def test_only_what_changed_is_looked_at_again(
    folder: Path, decoded: list[bytes], monkeypatch: pytest.MonkeyPatch, files_per_process: int
) -> None:
    monkeypatch.setattr(indexing, "FILES_PER_PROCESS", files_per_process)  # with 3 of 8 files: in processes
    before = open_source(folder)
    decoded.clear()
    Image.new("RGB", (31, 17), "red").save(folder / "3.png")
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    (folder / "img_txt.csv").write_text((folder / "img_txt.csv").read_text() + "new.png,new\n")
    after = open_source(folder)
    assert decoded == [(folder / "3.png").read_bytes(), (folder / "new.png").read_bytes()]
    assert (after.sample(3).width, after.sample(3).height, after.sample(7).text) == (31, 17, "new")
    assert after.index.digest != before.index.digest
    assert after.sample(2) == before.sample(2)


def test_a_table_added_or_taken_away_is_seen(folder: Path, decoded: list[bytes]) -> None:
    open_source(folder)
    Image.new("RGB", (9, 9)).save(folder / "new.png")
    (folder / "a.csv").write_text("dir,text\nnew.png,new\n")
    assert open_source(folder).sample(0).origin == "a.csv:2"
    (folder / "a.csv").unlink()
    assert open_source(folder).sample(0).origin == "img_txt.csv:2"
    assert len(decoded) == 8


def test_a_bad_file_is_found_again_until_it_is_mended(folder: Path) -> None:
    good = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(good[:60])
    for _ in range(2):
        with pytest.raises(DataError, match=r"1 of 7 rows are bad.*\n  img_txt\.csv:4: 2\.png is no readable image"):
            open_source(folder)
    kept = open_source(folder, "skip")
    assert len(kept) == 6
    assert [kept.sample(n).origin for n in (1, 2)] == ["img_txt.csv:3", "img_txt.csv:5"]
    assert [origin for origin, _ in kept.bad] == ["img_txt.csv:4"]
    (folder / "2.png").write_bytes(good)
    assert len(open_source(folder)) == 7


def test_a_folder_with_bad_files_is_the_same_elsewhere(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is said of a bad file may name the place or the moment, and is no part of the digest."""
    (folder / "2.png").write_bytes(b"no image")
    (folder / "3.png").unlink()
    (folder / "3.png").mkdir()
    (folder / "4.png").write_bytes((folder / "4.png").read_bytes()[:60])
    elsewhere = shutil.copytree(folder, tmp_path_factory.mktemp("elsewhere") / "copy")
    first, other = open_source(folder, "skip"), open_source(elsewhere, "skip")
    assert (first.bad, first.digest) == (other.bad, other.digest)
    known = ", ".join(FORMATS)
    assert first.bad[:2] == [
        ("img_txt.csv:4", f"2.png is no image of a known format (known: {known})"),
        ("img_txt.csv:5", "3.png is no readable image (Is a directory)"),
    ]
    (folder / "5.png").unlink()
    assert open_source(folder, "skip").digest != first.digest


def test_nothing_is_left_to_train_on(folder: Path) -> None:
    for image in folder.glob("*.png"):
        image.unlink()
    with pytest.raises(DataError, match="7 of 7 rows are bad"):
        open_source(folder, "skip")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:100], lambda data: b"x" * 1000])
def test_a_damaged_index_is_made_anew(folder: Path, damage: object) -> None:
    expected = open_source(folder)
    path = folder / INDEX_NAME
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert read_index(path) is None
    assert open_source(folder).index.digest == expected.index.digest


def test_an_image_that_changes_under_a_run_is_no_sample(folder: Path) -> None:
    source = open_source(folder)
    status = (folder / "1.png").stat()
    content = bytearray((folder / "1.png").read_bytes())
    content[-1] ^= 1
    (folder / "1.png").write_bytes(content)
    os.utime(folder / "1.png", ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(DataError, match=r"img_txt\.csv:3: .*1\.png has changed since it was checked"):
        source.sample(1).read()
    (folder / "1.png").unlink()
    with pytest.raises(DataError, match=r"img_txt\.csv:3: .*1\.png cannot be read any more"):
        source.sample(1).read()


def as_nobody(monkeypatch: pytest.MonkeyPatch, folder: Path, *, may_read: bool) -> None:
    """From now on this user may not write in `folder` and, unless `may_read`, not read its index, whoever runs the
    tests; files elsewhere are as they were."""
    real_open, real_replace, real_touch = Path.open, Path.replace, Path.touch

    def refuse(path: Path) -> None:
        if path.parent == folder:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    def opened(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.name == INDEX_NAME and not may_read:
            refuse(path)
        return real_open(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(Path, "touch", lambda path, *rest: refuse(path) or real_touch(path, *rest))
    monkeypatch.setattr(Path, "replace", lambda path, to: refuse(Path(to)) or real_replace(path, to))


@pytest.mark.parametrize("may_read", [True, False])
@pytest.mark.parametrize("inside", ["none", "fresh", "stale", "damaged"])
def test_an_unreadable_index_inside_gives_way_to_the_home_cache(
    folder: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    decoded: list[bytes],
    inside: str,
    may_read: bool,
) -> None:
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    path = folder / INDEX_NAME
    if inside != "none":
        open_source(folder)
    if inside == "stale":
        (folder / "img_txt.csv").write_text((folder / "img_txt.csv").read_text().replace("caption 3", "another"))
    if inside == "damaged":
        path.write_bytes(path.read_bytes()[:-1])
    as_nobody(monkeypatch, folder, may_read=may_read)
    decoded.clear()
    first = open_source(folder)
    kept = path if inside == "fresh" and may_read else home
    assert first.index.path is not None
    assert first.index.path.is_relative_to(kept)
    spared = may_read and inside in ("fresh", "stale")
    assert len(decoded) == (0 if spared else 7)
    decoded.clear()
    again = open_source(folder)
    assert (again.digest, again.index.path) == (first.digest, first.index.path)
    assert not decoded
    assert open_source(folder, checked=first.index.digest).index.path == first.index.path
    assert sorted(each.name for each in home.rglob("*") if each.is_file()) == (
        [first.index.path.name] if kept == home else []
    )


def test_both_indices_are_used_when_both_are_out_of_date(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes]
) -> None:
    """Somebody else's in the folder, and this user's own, which may have seen other images."""

    def add(number: int) -> None:
        Image.new("RGB", (9, 9 + number)).save(folder / f"new{number}.png")
        (folder / "img_txt.csv").write_text((folder / "img_txt.csv").read_text() + f"new{number}.png,new\n")

    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    open_source(folder)
    as_nobody(monkeypatch, folder, may_read=True)
    for number in range(2):
        add(number)
        decoded.clear()
        assert len(open_source(folder)) == 8 + number
        assert len(decoded) == 1


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_an_index_has_the_rights_of_any_new_file(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        open_source(folder)
    finally:
        os.umask(before)
    assert stat.S_IMODE((folder / INDEX_NAME).stat().st_mode) == 0o666 & ~umask
    assert [path.name for path in folder.glob(".*")] == [INDEX_NAME]


def test_an_index_that_cannot_be_kept_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch, decoded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "file").write_text("no folder")
    monkeypatch.setattr(indexing, "index_paths", lambda path: [path / "file" / "index"])
    for _ in range(2):
        source = open_source(folder)
        assert source.index.path is None
    assert len(decoded) == 14
    assert "cannot be kept" in caplog.text
    make, arguments = source.index.__reduce__()
    assert make(*arguments).digest == source.index.digest


def test_any_byte_that_flips_is_noticed_and_the_index_made_again(
    folder: Path, decoded: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    expected = open_source(folder)
    path, samples = folder / INDEX_NAME, [expected.sample(n) for n in range(7)]
    whole = path.read_bytes()
    noticed = 0
    for place in np.random.default_rng(0).choice(len(whole), 300, replace=False).tolist():
        content = bytearray(whole)
        content[place] ^= 1 << place % 8
        path.write_bytes(content)
        index = read_index(path)
        noticed += index is None
        if index is not None:  # the space after the header
            assert whole[place : place + 1] == b" "
            assert [Folder(folder, index).sample(n) for n in range(7)] == samples
    assert noticed > 280
    content = bytearray(whole)
    content[whole.index(b"caption 3")] ^= 1
    path.write_bytes(content)
    caplog.clear()
    decoded.clear()
    assert open_source(folder).sample(3).text == "caption 3, with a comma"
    assert len(decoded) == 7
    assert f"{path}: damaged (its content is not what was written); it is made again" in caplog.text
    assert open_source(folder).index.seal == expected.index.seal


def test_what_lies_in_its_place_is_no_index(folder: Path) -> None:
    os.mkfifo(folder / INDEX_NAME)
    assert open_source(folder).index.path == folder / INDEX_NAME
    (folder / INDEX_NAME).unlink()
    save_file({"a": np.zeros(3)}, folder / INDEX_NAME)
    assert len(open_source(folder)) == 7


def test_a_folder_that_cannot_be_listed_is_an_error_of_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> list[str]:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(DataError, match=r"cannot be listed \(Permission denied\); let this user read the folder$"):
        open_source(folder)


def test_a_worker_notices_that_its_index_was_replaced(folder: Path) -> None:
    source = open_source(folder)
    make, arguments = source.index.__reduce__()
    assert make(*arguments).digest == source.index.digest
    (folder / "img_txt.csv").write_text("dir,text\n0.png,other\n")
    open_source(folder)
    with pytest.raises(RuntimeError, match="was replaced while it was in use"):
        make(*arguments)


def test_many_images_are_looked_at_by_processes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_source(folder).index.digest
    (folder / INDEX_NAME).unlink()
    monkeypatch.setattr(scan, "FEW", 0)
    assert open_source(folder, workers=2).index.digest == expected


@pytest.mark.parametrize("files_per_process", [indexing.FILES_PER_PROCESS, 2])
def test_files_are_asked_for_whatever_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files_per_process: int
) -> None:
    monkeypatch.setattr(indexing, "FILES_PER_PROCESS", files_per_process)
    names = ["a.png", "sub/b b.png", "ü\n.png", "-I.png", "missing.png"]
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(names[:-1]):
        (tmp_path / name).write_bytes(b"x" * number)
        os.utime(tmp_path / name, ns=(0, 10**18 + number))
    sizes, times = indexing.stat_files(tmp_path, names)
    assert sizes.tolist() == [0, 1, 2, 3, -1]
    assert times.tolist() == [10**18, 10**18 + 1, 10**18 + 2, 10**18 + 3, -1]
