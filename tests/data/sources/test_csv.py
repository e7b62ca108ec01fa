"""Tables of captions: every line is read, or blamed by its own number, or the whole table is refused."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, open_source
from data.sources.csv_format import read_table, records
from support.images.image_files import encoded, noise

OPEN = 'a quote (") opened here is never closed; close it, or write each quote within a quoted text twice ("")'
FOLLOWS = 'text follows a closing quote ("); write each quote within a quoted text twice ("")'


def table(folder: Path, text: str | bytes) -> Path:
    path = folder / "img_txt.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def found(folder: Path, text: str | bytes) -> dict[int, tuple[str, str, str]]:
    """Line -> image, caption and fault of each row."""
    rows = read_table(table(folder, text))
    for row in rows:
        if row.caption:
            row.check_caption("its caption")
    lines = [int(row.origin.removeprefix("img_txt.csv:")) for row in rows]
    assert len(set(lines)) == len(lines)
    return dict(
        zip(lines, [(row.file, row.captions[0] if row.captions else "", row.fault) for row in rows], strict=True)
    )


def test_an_open_quote_costs_its_own_line_alone(tmp_path: Path) -> None:
    """Longer than the 131,072 characters beyond which Python's reader gives up by itself."""
    lines = ["dir,text", '0.png,"unclosed', *(f"{n}.png,a fairly long caption number {n}" for n in range(1, 4000))]
    rows = found(tmp_path, "\n".join(lines))
    assert rows.pop(2) == ("", "", OPEN)
    assert rows == {n + 2: (f"{n}.png", f"a fairly long caption number {n}", "") for n in range(1, 4000)}


def test_text_after_a_closing_quote_is_blamed_where_it_is(tmp_path: Path) -> None:
    text = 'dir,text\n0.png,"Hello" said he\n1.png,fine\n"2.png" ,x\n3.png,"a, b"\n4.png,"a" "b"\n'
    assert found(tmp_path, text) == {
        2: ("", "", FOLLOWS),
        3: ("1.png", "fine", ""),
        4: ("", "", FOLLOWS),
        5: ("3.png", "a, b", ""),
        6: ("", "", FOLLOWS),
    }


@pytest.mark.parametrize("end", ['9.png,and closes"', '9.png,"a quoted caption"', '9.png,"opens again'])
def test_a_quote_that_closes_beyond_other_rows_swallows_none(tmp_path: Path, end: str) -> None:
    rows = found(tmp_path, f'dir,text\n0.png,"opens\n1.png,x\n\n2.jpeg,"y"\n{end}\n')
    assert list(rows) == [2, 3, 5, 6]
    assert 'a quote (") opened here is' in rows[2][2]
    assert (rows[3], rows[5]) == (("1.png", "x", ""), ("2.jpeg", "y", ""))


def test_rows_are_found_within_a_text_in_either_order_of_columns(tmp_path: Path) -> None:
    rows = found(tmp_path, 'text,dir\n"opens,0.png\nx,1.png\ny,2.png\ncloses",3.png\n')
    assert list(rows) == [2, 3, 4, 5]
    assert [rows[line][0] for line in (3, 4)] == ["1.png", "2.png"]


def test_prose_of_several_lines_is_one_caption(tmp_path: Path) -> None:
    prose = "a cat, as in\nphoto.jpg\nand, on the right, photo.png"
    assert found(tmp_path, f'dir,text\n0.png,"{prose}"\n') == {2: ("0.png", prose, "")}


def test_captions_of_several_lines_and_of_any_length(tmp_path: Path) -> None:
    long = "word " * 40_000
    text = f'dir,text\n0.png,"two\nlines, and a ""quote"""\n\n1.png,"{long}"\n2.png,\'5" nail\n3.png,x\n'
    assert found(tmp_path, text) == {
        2: ("0.png", 'two\nlines, and a "quote"', ""),
        5: ("1.png", long, ""),
        6: ("2.png", "'5\" nail", ""),
        7: ("3.png", "x", ""),
    }


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_line_ends_and_declared_encodings(tmp_path: Path, end: str, encoding: str) -> None:
    text = 'dir,text\n0.png,"über\ndem See"\n\n1.png,狗\u2028x\n'.replace("\n", end)
    assert found(tmp_path, text.encode(encoding)) == {
        2: ("0.png", "über\ndem See", ""),
        5: ("1.png", "狗\u2028x", ""),
    }


@pytest.mark.parametrize("encoding", ["gbk", "shift-jis", "big5"])
def test_captions_of_an_undeclared_encoding_are_blamed(tmp_path: Path, encoding: str) -> None:
    text = 'dir,text\n0.png,a dog\n1.png,"山, 川"\n'.encode(encoding)
    rows = found(tmp_path, text)
    assert rows[2] == ("0.png", "a dog", "")
    assert rows[3][:2] == ("1.png", "")
    assert rows[3][2].startswith("its caption is not UTF-8 (found \\x")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", "img_txt.csv:1: it cannot be read as a table, being empty; begin it with dir,text"),
        (b"\n \n", "being empty"),
        (b"dir,text\n0.png,a\n1.png,\0\n", "img_txt.csv:3: holds a NUL byte, so it is not text; write it as CSV"),
        ("dir,text\n0.png,a\n".encode("utf-16-le"), "img_txt.csv:1: holds a NUL byte"),
        (b"\xff\xfed\0i\0r", "img_txt.csv: cannot be read as a table (.*truncated data.*); write it as CSV in UTF-8"),
        (b"dir,text,text\n", "found the columns dir,text,text; needed dir,text (text comes 2 times)"),
        (b"text,dir,dir\n", "(dir comes 2 times)"),
        (b"dir;text\n", "found the columns dir;text; needed dir,text (missing dir, missing text)"),
        (b'\n"dir,text\n0.png,x\n', 'img_txt.csv:2: a quote (") opened here is never closed'),
    ],
)  # fmt: skip
def test_what_is_no_such_table(tmp_path: Path, text: bytes, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        read_table(table(tmp_path, text))
    before, _, after = reason.partition(".*")
    assert before in str(caught.value)
    assert after.rpartition(".*")[2] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_lines_with_too_few_and_too_many_fields(tmp_path: Path) -> None:
    text = "text,dir,source\n\na,0.png,web\nb,1.png\nc\n,,\nd, e,2.png,web\n"
    assert found(tmp_path, text) == {
        3: ("0.png", "a", ""),
        4: ("1.png", "b", "2 fields where the header has 3"),
        5: ("", "c", ""),  # no image: blamed with the other rules of tables
        6: ("", "", ""),
        7: ("", "", "more than 3 fields; quote a text that holds a comma: d, e,2.png,web"),
    }


def test_upper_case_tables_are_found_and_hidden_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(encoded(noise(8, 8), "PNG"))
    (tmp_path / "IMG_TXT.CSV").write_text("dir,text\n0.png,a\n")
    (tmp_path / "._IMG_TXT.CSV").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X        ")
    (tmp_path / ".csv").write_text("no table")
    source = open_source(tmp_path)
    assert [source.sample(n).origin for n in range(len(source))] == ["IMG_TXT.CSV:2"]


PIECES = st.sampled_from(
    ['"', '""', ",", "\n", "\r", "\r\n", " ", "a", "0.png,", "dir,text", "\t", "ü", "\\", "'", ".jpg"]
)


@settings(derandomize=True, deadline=None, max_examples=2000)
@given(st.lists(PIECES, max_size=40).map("".join))
def test_every_line_is_in_one_record(text: str) -> None:
    lines = io.StringIO(text, newline=None).readlines()
    covered: list[int] = []
    for number, fields in records(lines):
        lines_of_record = 1 if isinstance(fields, str) else 1 + "".join(fields).count("\n")
        covered += range(number, number + lines_of_record)
    assert covered == sorted(set(covered))
    rest = set(range(1, len(lines) + 1)) - set(covered)
    assert [lines[number - 1] for number in rest if lines[number - 1].strip()] == []


WORDS = st.text(st.sampled_from("ab \",;\n\\'ü"), min_size=1, max_size=12)


@settings(derandomize=True, deadline=None, max_examples=500)
@given(st.lists(st.tuples(WORDS, WORDS), max_size=12))
def test_what_is_well_written_is_read_as_it_was(rows: list[tuple[str, str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_ALL).writerows(rows)
    assert [fields for _, fields in records(io.StringIO(buffer.getvalue()).readlines())] == [list(row) for row in rows]


STRAY = st.sampled_from(
    ['"', 'x.png,"', 'x.png,"open', '"x.png,open', 'x.png,"a"b', 'x.png,"a" ', '"x.png" ,a', 'x.png,"a""']
)


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(st.lists(STRAY | st.none(), max_size=30))
def test_stray_quotes_cost_no_other_line(lines: list[str | None]) -> None:
    """Rows (where None stands) are read, whatever stands between them."""
    written = [f"{number}.png,caption {number}" if line is None else line for number, line in enumerate(lines)]
    found = dict(records([f"{line}\n" for line in written]))
    for number, line in enumerate(lines):
        if line is None:
            assert found[number + 1] == [f"{number}.png", f"caption {number}"]
