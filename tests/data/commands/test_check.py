"""`vpred-data check`: what it counts, against folders where the answers are known."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.commands.examine import examine
from data.sources.source import open_source
from vpred_train.commands.data import main

LONG = "word " * 80


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Four good images, one twice and two small, with a caption of 80 words, and two bad rows."""
    rng = np.random.default_rng(0)
    for name, size in (("wide", (600, 280)), ("tall", (256, 256)), ("tiny", (30, 90))):
        Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(tmp_path / f"{name}.png")
    (tmp_path / "copy.png").write_bytes((tmp_path / "tiny.png").read_bytes())
    (tmp_path / "bad.png").write_bytes(b"no image")
    rows = [
        "wide.png,a <b> boat",
        "tall.png,a house",
        f"tiny.png,{LONG}",
        "copy.png,a house",
        "bad.png,x",
        "none.png,x",
    ]
    (tmp_path / "a.csv").write_text("\n".join(["dir,text", *rows]))
    return tmp_path


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["check", *argv])
    return int(ended.value.code or 0)


def test_all_is_counted(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(mixed), "--json") == 2
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["rows"], found["images"], found["distinct_captions"]) == (6, 4, 3)
    assert (found["smallest_side_px"], found["largest_short_side_px"], found["median_short_side_px"]) == (30, 280, 143)
    assert found["small"] == [["a.csv:4", 30, 90], ["a.csv:5", 30, 90]]
    assert found["duplicates"] == [["a.csv:4", "a.csv:5"]]
    shapes = {name: count for name, count in found["aspect_ratios"].items() if count}
    assert shapes == {"below 1:2": 2, "about 1:1": 1, "above 2:1": 1}
    assert found["tokens"]["longest"] == 82
    assert found["tokens"]["cut"] == [{"origin": "a.csv:4", "tokens": 82, "lost": " ".join(["word"] * 5)}]
    assert found["tokens"]["mean"] == round((7 + 4 + 82 + 4) / 4, 1)  # a < b > boat
    assert [origin for origin, _ in found["bad"]] == ["a.csv:6", "a.csv:7"]
    assert "a.csv:6: bad.png is no image of a known format" in output.err
    assert "a.csv:7: none.png does not exist" in output.err


def test_the_page_escapes_captions_and_shows_every_list(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(mixed), "--html", str(mixed / "check.html")) == 2
    page = (mixed / "check.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 4
    assert "a &lt;b&gt; boat" in page
    assert "<b>" not in page
    for text in ("a.csv:7", "none.png does not exist", "more than once", "no network sees", "below 256 px"):
        assert text in page
    assert "bad rows                 2" in capsys.readouterr().out


def test_several_folders_and_a_page_that_cannot_be_written(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path_factory.mktemp("other")
    Image.new("RGB", (300, 300)).save(other / "a.png")
    (other / "a.csv").write_text("dir,text\na.png,a\n")
    assert run(str(folder), str(other), "--json") == 0
    assert [each["images"] for each in json.loads(capsys.readouterr().out)] == [7, 1]
    assert run(str(other), "--html", str(other / "none" / "a.html")) == 2
    assert "cannot be written (No such file or directory)" in capsys.readouterr().err


def test_a_folder_without_a_good_row_is_listed_in_full(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [f"{number}.png,x" for number in range(30)]
    (tmp_path / "a.csv").write_text("\n".join(["dir,text", *rows]))
    assert run(str(tmp_path), "--json", "--html", str(tmp_path / "check.html")) == 2
    output = capsys.readouterr()
    found = json.loads(output.out)
    assert (found["rows"], found["images"], found["smallest_side_px"]) == (30, 0, 0)
    assert found["bad"] == [[f"a.csv:{number + 2}", f"{number}.png does not exist"] for number in range(30)]
    assert "29.png does not exist" in (tmp_path / "check.html").read_text()
    assert "and 10 more bad rows; --json and --html list them" in output.err


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    rows = [f"{number}.png,x" for number in range(3000)]  # more than a pipe holds
    (tmp_path / "a.csv").write_text("\n".join(["dir,text", *rows]))
    argv = [sys.executable, "-P", "-m", "vpred_train.commands.data", "check", "--json", str(tmp_path)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as check:
        assert check.stdout
        assert check.stderr
        assert check.stdout.readline() == "{\n"
        check.stdout.close()
        assert check.wait(timeout=60) == 128 + signal.SIGPIPE
        assert check.stderr.read() == ""


def test_too_few_workers_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(str(tmp_path), "--workers", "-1") == 2
    assert capsys.readouterr().err == "--workers: found -1 (must be at least 1)\n"


def test_without_a_tokenizer_words_are_counted(folder: Path) -> None:
    found = examine(open_source(folder), 0, None)
    assert (found.tokens, found.longest_caption_words, found.small) == (None, 5, [])
