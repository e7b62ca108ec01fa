"""metadata.jsonl: every line that is not blank is a row, good or blamed by its own number."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, open_source
from data.sources.jsonl_format import jsonl_rows, parse_object
from data.sources.rows import Row
from support.images.image_files import encoded, noise, write_files

GOOD = '{"file_name": "0.png", "text": "a dog"}'


def rows_of(folder: Path, content: bytes) -> list[Row]:
    (folder / "metadata.jsonl").write_bytes(content)
    return jsonl_rows(folder, [folder / "metadata.jsonl"])


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"[" * 100_000, "no JSON (nested too deep)"),
        (b'{"a":' * 100_000, "no JSON (nested too deep)"),
        (b'{"file_name": "0.png", "size": {}, "text": "a", "text": "b"}', "no JSON (the key 'text' comes twice)"),
        (b'{"file_name": "0.png", "text": NaN}', "its caption is of type float (nan); give a string, or a list"),
        (b'{"file_name": "0.png", "text": ["a", 1]}', "its caption has 2 captions, of which number 2 is of type int"),
        (
            b'{"file_name": NaN, "text": "a"}',
            'no "file_name"; each line is {"file_name": "a.jpg", "text": "a caption"}',
        ),
        (b'["0.png"]', 'no "file_name"; each line is {"file_name": "a.jpg", "text": "a caption"}'),
        ('{"file_name": "0.png", "text": "狗"}'.encode("gbk"), "no JSON (not UTF-8 (found \\xb9))"),
        (b'{"file_name": "\\ud800.png", "text": "a"}', "no JSON ('utf-8' codec can't encode character"),
        (b'{"file_name": "0.png", "text": "a\\u0000"}', "its caption holds a NUL byte, so it is not text"),
        (b'{"file_name": "0.png", "text": "a"', "no JSON (Expecting ',' delimiter"),
        (b'{"file_name": "0.png", "text": "a", "id": ' + b"9" * 5000 + b"}", "no JSON (Exceeds the limit"),
        (b"\0\0\0\0", "no JSON (Expecting value"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_line_is_a_bad_row(tmp_path: Path, line: bytes, fault: str) -> None:
    write_files(tmp_path, {"0.png": encoded(noise(8, 8), "PNG"), "1.png": encoded(noise(8, 8), "PNG")})
    good = GOOD.replace("0.png", "1.png").encode()
    (tmp_path / "metadata.jsonl").write_bytes(b"\n" + line + b"\n" + good)
    source = open_source(tmp_path, "tell")
    ((origin, reason),) = source.bad
    assert (origin, len(source)) == ("metadata.jsonl:2", 1)
    assert reason.startswith(fault)
    assert len(reason) < 300


def test_odd_json_in_other_keys_harms_nothing(tmp_path: Path) -> None:
    """Python writes NaN for a score that is missing."""
    (row,) = rows_of(
        tmp_path, b'{"file_name": "0.png", "text": "a", "score": NaN, "size": [Infinity, {"a": 1, "a": 2}]}'
    )
    assert (row.file, row.caption, row.fault) == ("0.png", "a", "")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_declared_encodings(tmp_path: Path, end: str, encoding: str) -> None:
    text = f'{{"file_name": "0.png", "text": "狗\u2028"}}{end}{end}{GOOD}'
    found = rows_of(tmp_path, text.encode(encoding))
    assert [(row.origin, row.caption) for row in found] == [
        ("metadata.jsonl:1", "狗\u2028"),
        ("metadata.jsonl:3", "a dog"),
    ]


def test_an_upper_case_name_and_a_broken_encoding(tmp_path: Path) -> None:
    (tmp_path / "METADATA.JSONL").write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match=r"METADATA\.JSONL: cannot be read as a table \(.*truncated data"):
        open_source(tmp_path)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
LINES = st.one_of(
    st.binary(max_size=20),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.fixed_dictionaries({"file_name": JSON | st.just("0.png"), "text": JSON}).map(
        lambda each: json.dumps(each).encode()
    ),
    st.just(GOOD.encode()),
    st.just(b""),
)


@settings(derandomize=True, deadline=None, max_examples=250)
@given(content=st.lists(LINES, max_size=8).map(b"\n".join), cut=st.integers(0, 200))
def test_every_line_is_one_row(tmp_path_factory: pytest.TempPathFactory, content: bytes, cut: int) -> None:
    content = content[: len(content) - cut] if cut < len(content) else content
    folder = tmp_path_factory.getbasetemp()
    try:
        rows = rows_of(folder, content)
    except DataError as error:
        assert content[:2] in (b"\xff\xfe", b"\xfe\xff")  # one error for UTF-16 that is none
        assert "cannot be read as a table" in str(error)
        return
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return
    text = content.removeprefix(b"\xef\xbb\xbf").decode(errors="surrogateescape")
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    expected = [f"metadata.jsonl:{number}" for number, line in enumerate(lines, 1) if line.strip()]
    assert [row.origin for row in rows] == expected


@settings(derandomize=True, deadline=None, max_examples=400)
@given(JSON)
def test_objects_are_parsed_as_they_were_written(value: object) -> None:
    found = parse_object(json.dumps(value))
    assert json.dumps(found) == json.dumps(value if isinstance(value, dict) else {})
