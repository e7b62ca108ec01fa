"""Several captions of one image: what counts as one in each format, which is drawn, and that nothing else changes."""

import io
import json
import math
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from data import DataConfig, DataError, Folder, ImageFetcher, Loader, make_order, open_source
from data.commands.examine import examine
from data.files import INDEX_NAME
from data.images.size import Size
from data.sources.captions import captions_of, drawn_caption
from data.sources.index_builder import build_columns
from data.sources.index_file import make_index
from data.sources.rows import Row
from data.sources.scan import Look

GOOD: list[tuple[Any, tuple[str, ...]]] = [
    ("a cat", ("a cat",)),
    (["a cat"], ("a cat",)),
    (["a cat", "ein Haus", "三"], ("a cat", "ein Haus", "三")),
    (["twice", "twice"], ("twice", "twice")),
]
BAD: list[tuple[Any, str]] = [
    (None, "is null"),
    ("", "is empty"),
    (" \n", "is empty"),
    ([], "is an empty list"),
    (["a", None], "has 2 captions, of which number 2 is null"),
    (["a", " "], "has 2 captions, of which number 2 is empty"),
    ([["a"]], "has 1 captions, of which number 1 is of type list"),
    ({"en": "a"}, "is of type dict"),
    (5, "is of type int (5)"),
    (True, "is of type bool (True)"),
    (0, "is of type int (0)"),
    (math.nan, "is of type float (nan)"),
]
BYTES: list[tuple[Any, str]] = [(b"a cat", "is of type bytes"), ([b"a"], "number 1 is of type bytes")]


@pytest.mark.parametrize(("value", "expected"), GOOD)
def test_strings_and_lists_of_them_are_captions(value: Any, expected: tuple[str, ...]) -> None:
    assert captions_of(value) == expected


@pytest.mark.parametrize(
    ("value", "fault"), [*BAD, *BYTES, (["\ud800"], "number 1 is not UTF-8"), ("a\0", "holds a NUL byte")]
)
def test_all_else_is_none(value: Any, fault: str) -> None:
    with pytest.raises(ValueError) as caught:
        captions_of(value)
    assert fault in str(caught.value)
    assert len(str(caught.value)) < 250


def png(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (9, 8), (number % 256, number // 256, 7)).save(buffer, "PNG")
    return buffer.getvalue()


def write_jsonl(folder: Path, values: list[Any]) -> None:
    lines = []
    for number, value in enumerate(values):
        (folder / f"{number}.png").write_bytes(png(number))
        lines.append(json.dumps({"file_name": f"{number}.png", "caption": value}))
    (folder / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")


def write_tar(folder: Path, values: list[Any]) -> None:
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number, value in enumerate(values):
            files = ((f"{number}.png", png(number)), (f"{number}.json", json.dumps({"text": value}).encode()))
            for name, content in files:
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def write_parquet(folder: Path, values: list[Any], kind: Any = None, row_group_size: int | None = None) -> None:
    texts = values if isinstance(values, pyarrow.Array) else pyarrow.array(values, kind)
    images = [{"bytes": png(number), "path": None} for number in range(len(texts))]
    table = pyarrow.table({"image": images, "text": texts})
    parquet.write_table(table, folder / "a.parquet", row_group_size=row_group_size)


WRITERS = {"jsonl": write_jsonl, "webdataset": write_tar}


@pytest.mark.parametrize("name", WRITERS)
def test_json_is_taken_by_the_same_rule(name: str, tmp_path: Path) -> None:
    WRITERS[name](tmp_path, [value for value, _ in (*GOOD, *BAD)])
    source = open_source(tmp_path, "skip")
    assert [source.sample(number).captions for number in range(len(source))] == [expected for _, expected in GOOD]
    faults = [fault for _, fault in source.bad]
    assert len(faults) == len(BAD)
    for (value, expected), fault in zip(BAD, faults, strict=True):
        assert ("no " if value is None else expected) in fault  # null is as good as no caption


def nested(values: list[bytes | None], ends: list[int]) -> pyarrow.Array:
    """Lists of strings, some of which are no UTF-8: PyArrow stores them without a look."""
    texts = pyarrow.array(values, pyarrow.binary()).cast(pyarrow.string(), safe=False)
    return pyarrow.ListArray.from_arrays(pyarrow.array([0, *ends], pyarrow.int32()), texts)


@pytest.mark.parametrize(
    ("texts", "captions", "faults"),
    [
        (["a", None, " ", "b"], [("a",), ("b",)], ["text is null", "text is empty"]),
        (
            [["a", "b"], [], None, ["c"], ["d", None]],
            [("a", "b"), ("c",)],
            ["empty list", "is null", "number 2 is null"],
        ),
        ([b"a", None], [], ["is of type bytes", "is null"]),
        ([math.nan, 1.5], [], ["is of type float (nan)", "is of type float (1.5)"]),
        ([{"en": "a"}], [], ["is of type dict"]),
        ([[b"a"]], [], ["number 1 is of type bytes"]),
        ([[1]], [], ["number 1 is of type int"]),
        (pyarrow.array(["a", "b", "a"]).dictionary_encode(), [("a",), ("b",), ("a",)], []),
        (pyarrow.array(["a", "b"], pyarrow.large_string()), [("a",), ("b",)], []),
        (pyarrow.array([["a", "b"]], pyarrow.list_(pyarrow.string(), 2)), [("a", "b")], []),
        (pyarrow.array([b"\xb9", b"b"]).cast(pyarrow.string(), safe=False), [("b",)], ["can't decode byte 0xb9"]),
        (nested([b"a", b"\xb9", b"c"], [1, 2, 3]), [("a",), ("c",)], ["can't decode byte 0xb9"]),
        (pyarrow.nulls(2), [], ["is null", "is null"]),
    ],
)
def test_parquet_of_every_type(
    tmp_path: Path, texts: Any, captions: list[tuple[str, ...]], faults: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_parquet(tmp_path, texts)
    source = open_source(tmp_path, "report")
    assert [source.sample(number).captions for number in range(len(source))] == captions
    assert len(source.bad) == len(faults)
    for (origin, found), fault in zip(source.bad, faults, strict=True):
        assert origin.startswith("a.parquet:")
        assert fault in found


WORDS = st.binary(max_size=6) | st.text(max_size=6).map(lambda text: text.encode("utf-8", "surrogatepass"))


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(st.none() | st.lists(st.none() | WORDS, max_size=3), min_size=1, max_size=6), st.integers(1, 4))
def test_parquet_loses_and_invents_nothing(
    tmp_path_factory: pytest.TempPathFactory, rows: list[list[bytes | None] | None], group: int
) -> None:
    """Of any lists, those that are text through and through are taken as they are, each other is that row's fault."""
    folder = tmp_path_factory.mktemp("p")
    flat = [word for row in rows for word in row or ()]
    texts = pyarrow.array(flat, pyarrow.binary()).cast(pyarrow.string(), safe=False)
    places = np.cumsum([0, *(len(row or ()) for row in rows)])
    offsets = [None if row is None else int(place) for row, place in zip(rows, places, strict=False)]
    lists = pyarrow.ListArray.from_arrays(pyarrow.array([*offsets, int(places[-1])], pyarrow.int32()), texts)
    write_parquet(folder, lists, row_group_size=group)
    expected = {}
    for number, row in enumerate(rows):
        try:
            decoded = [word.decode() for word in row or ()]  # type: ignore[union-attr]
        except (UnicodeDecodeError, AttributeError):
            continue
        if decoded and all(text.strip() and "\0" not in text for text in decoded):
            expected[f"a.parquet:{number}"] = tuple(decoded)
    source = open_source(folder, "report")
    samples = [source.sample(number) for number in range(len(source))]
    assert {sample.origin: sample.captions for sample in samples} == expected
    assert {origin for origin, _ in source.bad} == {f"a.parquet:{n}" for n in range(len(rows))} - expected.keys()
    assert [sample.read() for sample in samples] == [png(int(sample.origin.split(":")[1])) for sample in samples]


def test_an_images_path_in_another_encoding_is_no_matter(tmp_path: Path) -> None:
    path = pyarrow.array([b"\xb9.png"]).cast(pyarrow.string(), safe=False)
    images = pyarrow.StructArray.from_arrays([pyarrow.array([png()]), path], names=["bytes", "path"])
    parquet.write_table(pyarrow.table({"image": images, "text": ["a"]}), tmp_path / "a.parquet")
    assert open_source(tmp_path).sample(0).read() == png()


def test_a_table_that_cannot_be_read_is_an_error_of_one_line(tmp_path: Path) -> None:
    write_parquet(tmp_path, ["a caption that takes some space"] * 200)
    content = bytearray((tmp_path / "a.parquet").read_bytes())
    place = content.index(b"a caption that takes")
    content[place - 60 : place] = bytes(60)
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.parquet: its column text cannot be read \(.*\); write the file again$"):
        open_source(tmp_path)
    columns = [pyarrow.array([b"x"]), pyarrow.array(["a"]), pyarrow.array(["b"])]
    parquet.write_table(pyarrow.table(columns, names=["image", "text", "text"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has the column text more than once"):
        open_source(tmp_path)


def test_a_damaged_file_is_an_error_of_one_line_or_bad_rows(tmp_path: Path) -> None:
    """300 seeded changes of bits and ends; 13,500 were tried by hand."""
    rng, wholes = np.random.default_rng(5), []
    for texts in (["a", "b", "c"], [["a", "b"], ["c"], ["d"]]):
        write_parquet(tmp_path, texts, row_group_size=2)
        wholes.append((tmp_path / "a.parquet").read_bytes())
    refused = 0
    for turn in range(300):
        content = bytearray(wholes[turn % 2])
        for place in rng.integers(4, len(content), rng.integers(1, 4)).tolist():
            content[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "a.parquet").write_bytes(content[: None if turn % 10 else int(rng.integers(len(content)))])
        try:
            source = open_source(tmp_path, "report")
        except DataError as error:
            refused += 1
            assert str(error).startswith(f"{tmp_path / 'a.parquet'}: ")
            assert "\n" not in str(error)
            continue
        assert len(source) + len(source.bad) == 3
        for number in range(len(source)):
            assert Image.open(io.BytesIO(source.sample(number).read())).size == (9, 8)
            assert all(isinstance(text, str) and text.strip() for text in source.captions(number))
    assert 100 < refused < 290


def folder_of(captions: list[tuple[str, ...]]) -> Folder:
    rows = [Row(list(each), f"x.csv:{n + 2}", f"{n}.png") for n, each in enumerate(captions)]
    for row in rows:
        row.check_caption("text")
    looks = {(row.file, 0, -1): Look(Size(8, 8), bytes([n] * 16), "") for n, row in enumerate(rows)}
    names = {row.file: number for number, row in enumerate(rows)}
    nothing = np.zeros(len(rows), np.int64)
    return Folder(Path("x"), make_index("csv", 0, build_columns(rows, looks, names, (nothing, nothing))))


def test_the_digest_of_single_captions_is_what_it_was() -> None:
    """Runs of earlier versions go on; the digest is that of commit 5f3acb7 for the same rows."""
    assert folder_of([("a",), ("ein Haus",), ("三",)]).digest == "b79ce8cc4993aefc899227366f3da1d9"
    assert folder_of([("a", "b"), ("c",)]).digest != folder_of([("a",), ("b", "c")]).digest


def test_the_digest_of_bad_rows_is_what_it_was(folder: Path) -> None:
    """Of commit 5f3acb7 too: their texts are part of it."""
    rows = ["0.png,fine", ",no file", "1.png,", "2.png, ", "gone.png,gone", "3.png,too,many"]
    (folder / "img_txt.csv").write_text("\n".join(["dir,text", *rows]) + "\n")
    assert open_source(folder, "skip").digest == "f89fcee32091f954f8615da48b73ca22"


def test_every_part_of_a_source_has_all_captions(folder: Path) -> None:
    captions = [("a",), ("b", "c", "d"), ("e",), ("f", "g")]
    source = folder_of(captions)
    ids = np.array([3, 1, 0])
    assert source.caption_counts(ids).tolist() == [2, 3, 1]
    assert source.caption_bytes(ids) == [b"f", b"g", b"b", b"c", b"d", b"a"]
    assert [source.captions(number) for number in range(4)] == captions


def test_the_draw_is_keyed_even_and_of_a_stream_of_its_own() -> None:
    draws = [drawn_caption(3, 7, epoch, sample) for epoch in range(60) for sample in range(60)]
    assert draws == [drawn_caption(3, 7, epoch, sample) for epoch in range(60) for sample in range(60)]
    pinned = [drawn_caption(3, 7, epoch, sample) for epoch in range(3) for sample in range(4)]
    assert pinned == [0, 2, 0, 2, 1, 2, 2, 2, 2, 1, 2, 1]  # never to change: runs go on with it
    assert all(abs(count / 3600 - 1 / 3) < 4 * math.sqrt(2 / 9 / 3600) for count in Counter(draws).values())
    assert {drawn_caption(1, 7, epoch, 0) for epoch in range(9)} == {0}


def drawn_captions(folder: Path, rank: int, world_size: int, start: int, count: int, workers: int = 0) -> list[Any]:
    """(sample, epoch, caption) of the run's samples start .. count that one rank has."""
    source = open_source(folder)
    config = DataConfig(path=folder, resolution=8, caption_drop=0.2, workers=workers)
    order = make_order(source, config, 5, 4)
    fetcher = ImageFetcher(source, config, 5)
    found = []
    with Loader(source, fetcher, config, order, rank=rank, world_size=world_size, start_samples_seen=start) as batches:
        for _ in range(start, count, 4):
            batch = next(batches)
            found += zip(batch.sample_ids.tolist(), batch.epochs.tolist(), batch.captions, strict=True)
    return found


def test_one_is_drawn_each_epoch_on_any_number_of_ranks_and_after_a_resume(tmp_path: Path) -> None:
    captions = [[f"{number} {kind}" for kind in range(1 + number % 4)] for number in range(6)]
    write_parquet(tmp_path, captions)
    alone = drawn_captions(tmp_path, 0, 1, 0, 120)
    shared = [each for rank in (0, 1) for each in drawn_captions(tmp_path, rank, 2, 0, 120)]
    resumed = drawn_captions(tmp_path, 0, 1, 60, 120)
    assert sorted(shared) == sorted(alone)
    assert resumed == alone[60:]
    assert drawn_captions(tmp_path, 0, 1, 60, 120, workers=1) == resumed
    for number, its in enumerate(captions):
        assert {caption for sample, _, caption in alone if sample == number} == {*its, ""}


def test_a_check_counts_every_caption(tmp_path: Path) -> None:
    class Words:
        context_length = 5

        def encode(self, text: str) -> list[int]:
            return [0] * len(text.split())

        def cut_off(self, text: str) -> str:
            return " ".join(text.split()[3:])

    write_jsonl(tmp_path, [["a b c d e", "a"], "a", ["x", "y", "a b c d"]])
    found = examine(open_source(tmp_path), 0, Words)
    assert (found.images, found.captions, found.distinct_captions) == (3, 6, 5)
    assert found.tokens
    assert [(cut.origin, cut.lost) for cut in found.tokens.cut] == [
        ("metadata.jsonl:1", "d e"),
        ("metadata.jsonl:3", "d"),
    ]
    assert (found.longest_caption_words, found.mean_caption_words) == (5, round(13 / 6, 1))


def test_an_index_keeps_several_captions(tmp_path: Path) -> None:
    write_jsonl(tmp_path, [["a", "b"], "c", []])
    first, again = (open_source(tmp_path, "skip") for _ in range(2))
    assert again.index.path == tmp_path / INDEX_NAME
    assert [again.captions(n) for n in range(2)] == [("a", "b"), ("c",)] == [first.captions(n) for n in range(2)]
    assert again.digest == first.digest
    write_jsonl(tmp_path, [["a", "x"], "c", []])
    assert open_source(tmp_path, "skip").digest != first.digest
