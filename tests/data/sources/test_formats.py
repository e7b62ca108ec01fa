"""The same samples from each format, and the faults that a user can make in it."""

import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import xxhash

from data import DataError, Folder, open_source
from support.images.folders import CAPTIONS, FORMATS, add, images, write_csv, write_jsonl


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_gives_the_same_samples(name: str, tmp_path: Path) -> None:
    write, origins = FORMATS[name]
    write(tmp_path)
    source = open_source(tmp_path)
    assert source.index.format == name
    found = [source.sample(number) for number in range(len(source))]
    assert [sample.read() for sample in found] == images()
    assert tuple(sample.text for sample in found) == CAPTIONS
    assert [sample.origin for sample in found] == origins
    assert [(sample.width, sample.height) for sample in found] == [(20, 10), (20, 11), (20, 12)]
    assert source.sizes(np.arange(3)).tolist() == [[20, 10], [20, 11], [20, 12]]
    assert [sample.content_hash for sample in found] == [xxhash.xxh3_128_hexdigest(content) for content in images()]


@pytest.mark.parametrize("name", ["csv", "webdataset"])
def test_a_source_crosses_to_another_process(name: str, tmp_path: Path) -> None:
    FORMATS[name][0](tmp_path)
    source = open_source(tmp_path)
    program = (
        "import sys\nfrom multiprocessing.reduction import ForkingPickler\n"
        "source = ForkingPickler.loads(sys.stdin.buffer.read())\nprint(source.sample(1).origin, len(source))"
    )
    from multiprocessing.reduction import ForkingPickler

    pickled = bytes(ForkingPickler.dumps(source))
    answer = subprocess.run([sys.executable, "-c", program], input=pickled, capture_output=True, check=True)
    assert answer.stdout.decode().split() == [source.sample(1).origin, "3"]
    assert len(pickled) < 2000  # a name, and no columns


def bad_rows(folder: Path) -> list[str]:
    return [f"{origin}: {reason}" for origin, reason in open_source(folder, "skip").bad]


def test_faults_in_a_metadata_jsonl(tmp_path: Path) -> None:
    write_jsonl(tmp_path)
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write('{"file_name": "sub/0.png", "text": "again"}\nno json\n{"text": "x"}\n{"file_name": "sub/1.png"}\n')
        file.write('{"file_name": "../x.png", "text": "x"}\n{"file_name": "loop.png", "text": "x"}\n')
        file.write('{"file_name": "a\\u0000.png", "text": "x"}\n{"file_name": "0.png", "text": "\\ud800"}\n')
    (tmp_path / "loop.png").symlink_to("loop.png")
    found = bad_rows(tmp_path)
    assert len(found) == 8
    for line, fragment in zip(
        found,
        (
            "metadata.jsonl:5: sub/0.png is already in metadata.jsonl:1",
            "metadata.jsonl:6: no JSON (Expecting value",
            'metadata.jsonl:7: no "file_name"',
            'metadata.jsonl:8: no "text" or "caption" (found file_name)',
            "metadata.jsonl:9: ../x.png leaves the folder",
            "metadata.jsonl:10: loop.png leaves the folder",
            "metadata.jsonl:11: file_name holds a NUL byte",
            "metadata.jsonl:12: no JSON ('utf-8' codec can't encode",
        ),
        strict=True,
    ):
        assert fragment in line


def test_faults_in_shards(tmp_path: Path) -> None:
    content = images()[0]
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        add(tar, "0.png", content)
        add(tar, "0.txt", b"fine")
        add(tar, "1.png", content)
        add(tar, "2.txt", b"no image")
        add(tar, "3.png", content[:50])
        add(tar, "3.txt", b"broken")
        add(tar, "4.png", content)
        add(tar, "4.json", b"{")
        add(tar, "5.png", content)
        add(tar, "5.txt", b" ")
        add(tar, "6.png", content)
        add(tar, "6.PNG", content)
        add(tar, "6.txt", b"which")
        add(tar, "7.png", content)
        add(tar, "7.json", b'{"text": "\\ud800"}')
    found = bad_rows(tmp_path)
    assert [line.split(": ")[0] for line in found] == [
        f"a.tar:{name}" for name in ("1.png", "2.txt", "3.png", "4.png", "5.png", "6.PNG", "7.png")
    ]
    for line, fragment in zip(
        found,
        ("no caption", "no image", "no readable image", "cannot be read", "empty", "twice", "cannot be read"),
        strict=True,
    ):
        assert fragment in line
    (tmp_path / "b.tar").write_bytes(b"no tar" * 1000)
    with pytest.raises(DataError, match=r"b\.tar: no whole plain tar"):
        open_source(tmp_path)


def test_faults_in_parquet(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    column = [{"bytes": images()[0], "path": None}, {"bytes": None, "path": "0.png"}, {"bytes": b"x", "path": None}]
    parquet.write_table(pyarrow.table({"image": column, "caption": ["a", "b", "c"]}), tmp_path / "a.parquet")
    assert [line.split(" (")[0] for line in bad_rows(tmp_path)] == [
        "a.parquet:1: a.parquet is no readable image",
        "a.parquet:2: a.parquet is no image of a known format",
    ]
    parquet.write_table(pyarrow.table({"picture": [b""], "caption": ["a"]}), tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"b\.parquet: found the columns picture, caption; needed image"):
        open_source(tmp_path)


def test_without_pyarrow_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"needs PyArrow; pip install 'vpred\[parquet\]'"):
        open_source(tmp_path)


def test_a_folder_of_tables_is_mindones_whatever_else_lies_in_it(tmp_path: Path) -> None:
    write_csv(tmp_path)
    with tarfile.open(tmp_path / "backup.tar", "w") as tar:
        add(tar, "x", b"")
    source = open_source(tmp_path)
    assert isinstance(source, Folder)
    assert (source.index.format, len(source)) == ("csv", 3)
