"""Reading MindONE's layout, and every fault a user can make in it."""

import json
from pathlib import Path

import pytest
from PIL import Image

from data import DataError, open_source
from data.commands.cli import main


def test_reads_all_tables_in_sorted_order(folder: Path) -> None:
    Image.new("RGB", (4, 4)).save(folder / "extra.png")
    (folder / "a.csv").write_text("text,dir\nNA,extra.png\n")
    source = open_source(folder)
    assert [source.sample(number).origin for number in (0, 1)] == ["a.csv:2", "img_txt.csv:2"]
    assert source.sample(0).text == "NA"
    assert source.sample(3).text == "caption 2, with a comma"
    assert [source.sample(number).sample_id for number in range(len(source))] == list(range(8))


def test_all_faults_are_listed_at_once(folder: Path) -> None:
    (folder / "broken.png").write_bytes((folder / "0.png").read_bytes()[:100])
    (folder / "text.png").write_text("not an image")
    (folder.parent / "outside.png").write_bytes((folder / "0.png").read_bytes())
    (folder / "link.png").symlink_to(folder.parent / "outside.png")
    rows = [
        ("1.png", "again"),
        ("", "no file"),
        ("gone.png", "missing"),
        ("broken.png", "truncated"),
        ("text.png", "text"),
        ("../outside.png", "outside"),
        ("/etc/hostname", "absolute"),
        ("link.png", "linked"),
    ]
    with (folder / "img_txt.csv").open("a") as file:
        file.writelines(f"{image},{text}\n" for image, text in rows)
        file.write("2.png,\n")
    with pytest.raises(DataError) as caught:
        open_source(folder)
    message = str(caught.value)
    for fragment in (
        "img_txt.csv:9: 1.png is already in img_txt.csv:3",
        "img_txt.csv:10: dir is empty",
        "img_txt.csv:11: gone.png does not exist",
        "img_txt.csv:12: broken.png is no readable image",
        "img_txt.csv:13: text.png is no image of a known format",
        "img_txt.csv:14: ../outside.png leaves the folder",
        "img_txt.csv:15: /etc/hostname leaves the folder",
        "img_txt.csv:16: link.png leaves the folder",
        "img_txt.csv:17: text is empty (2.png)",
    ):
        assert fragment in message
    assert "of 16 rows are bad" in message


def test_a_long_list_of_faults_is_cut_and_counted(folder: Path) -> None:
    with (folder / "img_txt.csv").open("a") as file:
        file.writelines(f"gone{number}.png,x\n" for number in range(30))
    with pytest.raises(DataError, match="30 of 37 rows") as caught:
        open_source(folder)
    assert str(caught.value).endswith("and 10 more")


@pytest.mark.parametrize(
    ("table", "fragment"),
    [
        ("image,caption\na.png,x\n", "found the columns image,caption; needed dir,text"),
        ("dir,text\n", "have no rows"),
        ("", "cannot be read as a table"),
        ("dir,text\na\0.png,x\n", "holds a NUL byte"),
    ],
)
def test_bad_tables(tmp_path: Path, table: str, fragment: str) -> None:
    (tmp_path / "img_txt.csv").write_text(table)
    with pytest.raises(DataError, match=fragment):
        open_source(tmp_path)


def test_no_folder_and_no_table(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        open_source(tmp_path / "nothing")
    with pytest.raises(DataError, match=r"holds no \.csv"):
        open_source(tmp_path)


def test_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as good:
        main(["check", str(folder), "--json"])
    assert good.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["images"], facts["smallest_side_px"], facts["longest_caption_words"]) == (7, 10, 5)
    (folder / "0.png").unlink()
    with pytest.raises(SystemExit) as bad:
        main(["check", str(folder)])
    assert bad.value.code == 2
    assert "0.png does not exist" in capsys.readouterr().err


def test_origins_count_the_lines_of_the_file(folder: Path) -> None:
    (folder / "img_txt.csv").write_text('dir,text\n0.png,"two\nlines"\n\n1.png,x\ngone.png,x\n')
    with pytest.raises(DataError, match=r"1 of 3 rows are bad.*\n  img_txt\.csv:6: gone\.png"):
        open_source(folder)


def test_unquoted_commas_are_listed_with_the_other_faults(folder: Path) -> None:
    (folder / "img_txt.csv").write_text("dir,text\n0.png,red, round\ngone.png,x\n1.png,a,b,c,d\n2.png\n3.png,fine\n")
    with pytest.raises(DataError) as caught:
        open_source(folder)
    message = str(caught.value)
    assert "4 of 5 rows are bad" in message
    for fragment in (
        "img_txt.csv:2: more than 2 fields; quote a text that holds a comma: 0.png,red, round",
        "img_txt.csv:3: gone.png does not exist",
        "img_txt.csv:4: more than 2 fields; quote a text that holds a comma: 1.png,a,b,c,d",
        "img_txt.csv:5: text is empty (2.png)",
    ):
        assert fragment in message


def test_a_quote_left_open_is_found_where_it_opens(folder: Path) -> None:
    (folder / "img_txt.csv").write_text('dir,text\n0.png,fine\n1.png,"open\n2.png,x\n')
    with pytest.raises(DataError, match=r"img_txt\.csv:3: a quote \(\"\) opened here is never closed"):
        open_source(folder)
