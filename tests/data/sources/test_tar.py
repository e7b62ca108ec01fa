"""WebDataset shards: whole ones alone are read, and every member of them is a sample, a part of one, or blamed."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, open_source
from data.images.decode import SUFFIXES
from data.sources.rows import Row
from data.sources.tar_format import tar_rows
from support.images.image_files import add, encoded, noise

IMAGE = encoded(noise(8, 8), "PNG")
NO_MARK = r"a\.tar: no whole plain tar \(no end mark at byte \d+: it was cut off or is damaged there\); write it again"


def write(path: Path, members: dict[str, bytes], **options: object) -> bytes:
    with tarfile.open(path, "w", **options) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            add(tar, name, content)
    return path.read_bytes()


def samples(count: int) -> dict[str, bytes]:
    """Members of `count` samples, 2560 bytes each."""
    return {
        f"{number}.{suffix}": content for number in range(count) for suffix, content in (("png", IMAGE), ("txt", b"a"))
    }


def rows_of(folder: Path) -> list[Row]:
    return tar_rows(folder, [folder / "a.tar"])


def test_a_tar_cut_anywhere_before_its_end_mark_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", samples(3))
    with tarfile.open(tmp_path / "a.tar") as tar:
        ends = tar.getmembers()[-1].offset_data + 512
    for size in range(0, ends + 1024, 256):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(DataError, match=r"a\.tar: no whole plain tar"):
            rows_of(tmp_path)
    (tmp_path / "a.tar").write_bytes(whole[: ends + 1024])
    assert len(rows_of(tmp_path)) == 3


@pytest.mark.parametrize("size", [2560, 2560 + 100, 2560 + 512])  # at a sample's, within a header, at a member's data
def test_what_is_missing_is_said(tmp_path: Path, size: int) -> None:
    whole = write(tmp_path / "a.tar", samples(3))
    with tarfile.open(tmp_path / "a.tar") as tar:
        start = tar.getmembers()[2].offset
    (tmp_path / "a.tar").write_bytes(whole[: start + size - 2560])
    with pytest.raises(DataError, match=NO_MARK if size != 3072 else r"unexpected end of data"):
        rows_of(tmp_path)


def test_tars_that_were_joined_are_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "b.tar", samples(2))
    (tmp_path / "a.tar").write_bytes(whole + whole)
    with pytest.raises(DataError, match=r"more follows its end mark at byte \d+, as when tars are joined: unpack each"):
        rows_of(tmp_path)
    (tmp_path / "a.tar").write_bytes(whole + bytes(3 << 20))  # padding of a tape, of whatever length
    assert len(rows_of(tmp_path)) == 2


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path: Path) -> None:
    whole = bytearray(write(tmp_path / "a.tar", samples(3)))
    with tarfile.open(tmp_path / "a.tar") as tar:
        header = tar.getmembers()[3].offset
    for place in range(header, header + 148):  # name, mode, owner, size and time
        damaged = whole.copy()
        damaged[place] ^= 1
        (tmp_path / "a.tar").write_bytes(damaged)
        with pytest.raises(DataError, match=NO_MARK):
            rows_of(tmp_path)


def test_a_size_that_leads_back_ends_no_run_in_a_circle(tmp_path: Path) -> None:
    for size in (-512, -1024, -(1 << 40)):
        member = tarfile.TarInfo("0.png")
        header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
        header[124:136] = b"\xff" + (size + (1 << 88)).to_bytes(11, "big")
        header[148:156] = b"%06o\0 " % tarfile.calc_chksums(header)[0]
        (tmp_path / "a.tar").write_bytes(bytes(header) * 3 + bytes(1024))
        with pytest.raises(DataError, match=r"a\.tar: no whole plain tar"):
            rows_of(tmp_path)


def test_hidden_members_are_passed_over(tmp_path: Path) -> None:
    junk = b"\0\5\x16\7\0\2\0\0Mac OS X        "
    names = ("./._0.png", "./.DS_Store", "__MACOSX/._0.png", ".ipynb_checkpoints/0.png", "./._0.txt", "a/.hidden/1.txt")
    members = {**dict.fromkeys(names[:4], junk), "./0.png": IMAGE, **dict.fromkeys(names[4:], junk), "./0.txt": b"a"}
    write(tmp_path / "a.tar", members)
    source = open_source(tmp_path)
    assert [source.sample(n).origin for n in range(len(source))] == ["a.tar:./0.png"]


@pytest.mark.parametrize("encoding", ["gbk", "shift-jis", "latin-1"])
@pytest.mark.parametrize("format_", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_names_in_other_encodings_matter_as_text_alone(
    tmp_path: Path, encoding: str, format_: int, capsys: pytest.CaptureFixture[str]
) -> None:
    from vpred_train.commands.data import main

    name = {"gbk": "狗", "shift-jis": "ソ表", "latin-1": "hündchen"}[encoding]
    members = {f"{name}.png": IMAGE, f"{name}.txt": "a dög".encode(), "1.png": b"no image", "1.txt": b"x"}
    write(tmp_path / "a.tar", members, format=format_, encoding=encoding)
    source = open_source(tmp_path, "skip")
    shown = name.encode(encoding).decode("ascii", "backslashreplace")
    assert (source.sample(0).origin, source.sample(0).text) == (f"a.tar:{shown}.png", "a dög")
    with pytest.raises(SystemExit):
        main(["check", str(tmp_path), "--json", "--html", str(tmp_path / "check.html")])
    assert json.loads(capsys.readouterr().out)["small"] == [[f"a.tar:{shown}.png", 8, 8]]
    assert f"a.tar:{shown}.png" in (tmp_path / "check.html").read_text(encoding="utf-8")


def test_what_is_no_plain_file_is_blamed(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "folder", b"", type=tarfile.DIRTYPE)
        add(tar, "0.png", IMAGE)
        add(tar, "0.txt", b"a")
        add(tar, "1.png", b"", type=tarfile.LNKTYPE, linkname="0.png")
        add(tar, "2.png", b"", type=tarfile.SYMTYPE, linkname="0.png")
        add(tar, "3.png", b"", type=tarfile.FIFOTYPE)
        add(tar, "4.png", b"", type=tarfile.CHRTYPE)
    found = {row.origin: row.fault for row in rows_of(tmp_path)}
    fault = "is stored as a link, sparse or as a device; write the tar again with plain files"
    assert found == {"a.tar:0.png": "", **{f"a.tar:{n}.png": fault for n in range(1, 5)}}


def test_two_images_of_one_sample_are_blamed_and_parts_are_not(tmp_path: Path) -> None:
    write(
        tmp_path / "a.tar",
        {"0.png": IMAGE, "0.jpg": IMAGE, "0.txt": b"a", "1.mask.png": IMAGE, "1.png": IMAGE, "1.txt": b"b"},
    )
    first, second = rows_of(tmp_path)
    assert first.fault == "0.png and 0.jpg are images of one sample; keep one"
    assert (second.origin, second.caption, second.fault) == ("a.tar:1.png", "b", "")


STEMS, ENDS = (
    ("0", "1", "a/0", "a.b/1", "._0", ".h/0"),
    (".png", ".PNG", ".jpg", ".txt", ".json", ".mask.png", ".x", ""),
)
MEMBERS = st.lists(st.tuples(st.sampled_from(STEMS), st.sampled_from(ENDS)), max_size=12)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(MEMBERS)
def test_every_member_is_of_a_row(tmp_path_factory: pytest.TempPathFactory, members: list[tuple[str, str]]) -> None:
    """Of a good one or of one that is blamed, and the bytes of good ones are those of an image that was put in."""
    folder = tmp_path_factory.getbasetemp()
    contents = [f"{number} {stem}{end}".encode() for number, (stem, end) in enumerate(members)]
    with tarfile.open(folder / "a.tar", "w") as tar:
        for (stem, end), content in zip(members, contents, strict=True):
            add(tar, stem + end, b'{"text": "a"}' if end == ".json" else content)
    rows = rows_of(folder)
    blamed_or_good = {re.sub(r"\.[^/]*$", "", row.origin.removeprefix("a.tar:")) for row in rows}
    assert blamed_or_good == {stem for stem, _ in members if not stem.startswith(".")}
    whole = (folder / "a.tar").read_bytes()
    for row in (row for row in rows if not row.fault):
        assert whole[row.offset : row.offset + row.length] in contents
        assert row.origin.lower().endswith((".png", ".jpg"))


@pytest.mark.parametrize("suffix", [*SUFFIXES, "PNG", "Avif"])
def test_every_suffix_of_an_image_is_known(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "A.TAR", {f"0.{suffix}": encoded(noise(8, 8), "AVIF"), "0.TXT": b"a"})
    assert open_source(tmp_path).sample(0).origin == f"A.TAR:0.{suffix}"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("0.json", b"[" * 100_000, "its caption cannot be read (nested too deep)"),
        ("0.json", b'{"text": "a", "text": "b"}', "its caption cannot be read (the key 'text' comes twice)"),
        ("0.json", b'{"text": NaN}', "its caption is of type float (nan); give a string, or a list"),
        ("0.json", b'"text"', "no caption: give a .txt, or a .json with text or caption"),
        ("0.json", '{"text": "狗"}'.encode("gbk"), "its caption cannot be read (not UTF-8 (found \\xb9))"),
        ("0.txt", "狗".encode("gbk"), "its caption is not UTF-8 (found \\xb9)"),
        ("0.txt", "a dog".encode("utf-16-le"), "its caption holds a NUL byte, so it is not text"),
        ("0.txt", b"\xff\xfea", "its caption cannot be read ('utf-16-le' codec can't decode byte 0x61"),
        ("0.json", '\ufeff{"text": "狗"}'.encode(), ""),
        ("0.txt", "狗".encode("utf-16"), ""),
    ],
)  # fmt: skip
def test_captions(tmp_path: Path, name: str, content: bytes, fault: str) -> None:
    write(tmp_path / "a.tar", {"0.png": IMAGE, name: content, "1.png": IMAGE, "1.txt": b"b"})
    source = open_source(tmp_path, "tell")
    assert len(source) == (1 if fault else 2)
    assert [reason[: len(fault)] for _, reason in source.bad] == ([fault] if fault else [])


def test_other_files_by_that_name(tmp_path: Path) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        add(tar, "0.png", IMAGE)
    for content in (b"", b"no tar" * 1000, packed.getvalue(), bytes(600)):
        (tmp_path / "a.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"a\.tar: no whole plain tar"):
            rows_of(tmp_path)
