"""What lies in a folder besides what is expected: FIFOs, devices, links, folders, and names that are not UTF-8."""

import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from data import DataError, open_source
from data.files import printable, read_file
from data.sources.index_builder import index_paths
from support.images.image_files import WRITERS, encoded, noise, write_csv, write_jsonl
from vpred_train.commands.data import main

IMAGE = encoded(noise(8, 8), "PNG")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


SPECIAL: dict[str, Callable[[Path], None]] = {
    "FIFO": os.mkfifo,
    "socket": make_socket,
    "folder": os.mkdir,
    "link to a FIFO": lambda path: (os.mkfifo(path.parent / "pipe"), path.symlink_to("pipe"))[1],
}


@pytest.mark.parametrize("write", [write_csv, write_jsonl])
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_a_bad_row(
    kind: str, write: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path may have 108 bytes
    folder = Path("d")
    folder.mkdir()
    write(folder, {"0.png": IMAGE, "1.png": IMAGE})
    (folder / "0.png").unlink()
    SPECIAL[kind](folder / "0.png")
    for _ in range(2):
        source = open_source(folder, "skip")
        ((_, fault),) = source.bad
        reason = "Is a directory" if kind == "folder" else "no regular file"
        assert (fault, len(source)) == (f"0.png is no readable image ({reason})", 1)


def test_an_image_that_becomes_a_fifo_is_an_error(tmp_path: Path) -> None:
    write_csv(tmp_path, {"0.png": IMAGE})
    source = open_source(tmp_path)
    (tmp_path / "0.png").unlink()
    os.mkfifo(tmp_path / "0.png")
    with pytest.raises(DataError, match=r"0\.png cannot be read any more \(no regular file\)"):
        source.sample(0).read()
    with pytest.raises(OSError, match="no regular file"):
        read_file(Path("/dev/zero"))


@pytest.mark.parametrize("name", ["img_txt.csv", "metadata.jsonl", "a.tar", "a.parquet"])
@pytest.mark.parametrize("kind", [*SPECIAL, "link to nothing"])
def test_a_table_that_is_no_regular_file_is_an_error(
    kind: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    SPECIAL.get(kind, lambda path: path.symlink_to("nothing"))(Path("d", name))
    with pytest.raises(DataError, match=r"d/.*: is no regular file; remove it or give it another name"):
        open_source(Path("d"))


def gbk(text: str) -> str:
    """A name as Python reads it from a folder written under GBK."""
    return os.fsdecode(text.encode("gbk"))


@pytest.mark.parametrize("layout", ["csv", "webdataset", "parquet"])
def test_tables_and_folders_whose_names_are_not_utf8(
    layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    WRITERS[layout](plain, {"0.png": IMAGE, "1.png": b"no image"})
    folder = plain.rename(tmp_path / gbk("表格"))
    (table,) = (path for path in folder.iterdir() if path.suffix in (".csv", ".tar", ".parquet"))
    table.rename(folder / (gbk("表格") + table.suffix))
    number = {"csv": "2", "webdataset": "0.png", "parquet": "0"}[layout]
    origin = f"\\xb1\\xed\\xb8\\xf1{table.suffix}:{number}"
    for _ in range(2):  # made, then read
        source = open_source(folder, "skip")
        assert source.sample(0).origin == origin
        assert source.sample(0).read() == IMAGE
    assert source.index.path == folder / ".vpred_index.safetensors"
    for options in ([], ["--json"]):
        with pytest.raises(SystemExit) as ended:
            main(["check", str(folder), *options, "--html", str(tmp_path / "check.html")])
        assert ended.value.code == 2
        output = capsys.readouterr()
        shown = f"{tmp_path}/\\xb1\\xed\\xb8\\xf1"
        assert f"{shown}: \\xb1\\xed\\xb8\\xf1{table.suffix}:" in output.err
        assert shown in (json.loads(output.out)["path"] if options else output.out)
        assert shown in (tmp_path / "check.html").read_text(encoding="utf-8")


def test_images_named_as_a_table_in_the_same_encoding_names_them(tmp_path: Path) -> None:
    for name in ("狗", "猫"):
        (tmp_path / f"{gbk(name)}.png").write_bytes(IMAGE)
    (tmp_path / "a.csv").write_bytes("dir,text\n狗.png,a dog\n鸟.png,a bird\n".encode("gbk"))
    source = open_source(tmp_path, "skip")
    assert (source.sample(0).text, source.sample(0).read()) == ("a dog", IMAGE)
    assert source.bad == [("a.csv:3", "\\xc4\\xf1.png does not exist")]


def test_the_index_of_a_read_only_folder_has_a_name_whatever_the_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert index_paths(tmp_path / gbk("表格")) != index_paths(tmp_path / gbk("表"))


def test_names_and_faults_take_one_line(tmp_path: Path) -> None:
    (tmp_path / "a\nb.csv").write_text('dir,text\n"0\n\x1b[31m.png",a\n')
    source = open_source(tmp_path, "tell")
    assert source.bad == [("a\\nb.csv:2", "0\\n\\x1b[31m.png does not exist")]
    assert printable("\udcb9\udcb7\ud800 狗\u2028\t") == "\\xb9\\xb7\\ud800 狗\\u2028\\t"


@pytest.mark.parametrize("layout", WRITERS)
def test_tables_are_found_whatever_their_case_and_hidden_ones_passed_over(layout: str, tmp_path: Path) -> None:
    WRITERS[layout](tmp_path, {"0.png": IMAGE})
    (table,) = (path for path in tmp_path.iterdir() if path.suffix != ".png")
    for hidden in (f"._{table.name}", f".{table.name}"):
        (tmp_path / hidden).write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    shutil.move(table, tmp_path / table.name.upper())
    source = open_source(tmp_path)
    assert (len(source), source.index.format) == (1, layout)


def test_names_under_a_gbk_locale(tmp_path: Path) -> None:
    """Python then has file names in GBK, and a table in UTF-8 names those of its own encoding."""
    if shutil.which("localedef") is None:
        pytest.skip("needs localedef")
    made = subprocess.run(["localedef", "-i", "zh_CN", "-f", "GBK", str(tmp_path / "zh_CN.GBK")], capture_output=True)
    if not (tmp_path / "zh_CN.GBK").exists():
        pytest.skip(f"localedef makes no GBK locale: {made.stderr.decode(errors='replace')}")
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / os.fsdecode("狗.png".encode("gbk"))).write_bytes(IMAGE)
    (folder / "img_txt.csv").write_text("dir,text\n狗.png,a dog\n鿿.png,a name that GBK has not\n", encoding="utf-8")
    program = (
        "import json, sys\nfrom pathlib import Path\n"
        "from data import open_source\nfrom data.sources import index_builder as indexing\n"
        "source = open_source(Path(sys.argv[1]), 'skip')\n"
        "fresh = indexing.is_fresh(source.index, source.path, indexing.find_format(source.path)[1])\n"
        "print(json.dumps([source.bad, len(source.sample(0).read()), fresh]))"
    )
    environment = {**os.environ, "LOCPATH": str(tmp_path), "LC_ALL": "zh_CN.GBK", "PYTHONUTF8": "0"}
    command = [sys.executable, "-P", "-c", program, str(folder)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    fault = "dir holds '\\u9fff', which no file name has where names are in gbk"
    assert json.loads(answer) == [[["img_txt.csv:3", fault]], len(IMAGE), True]
