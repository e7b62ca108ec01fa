"""Which samples are held out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from data import DataError, Sample, Source, hold_out, join, numbers_in_both, open_source, sample_generator
from data.sources.held_out import image_draws
from data.sources.index_builder import build_columns
from data.sources.index_file import make_index
from data.sources.rows import Row
from data.sources.scan import Look
from data.sources.source import Folder
from support.images.folders import FORMATS


def source_of(*contents: str, folder: str = "x") -> Folder:
    """A folder of images with these contents, in this order."""
    rows = [Row(f"text {n}", f"x.csv:{n + 2}", f"{n}.png") for n in range(len(contents))]
    for row in rows:
        row.check_caption("text")
    names = {row.file: number for number, row in enumerate(rows)}
    nothing = np.zeros(len(contents), np.int64)
    looks = {
        (row.file, 0, -1): Look(8, 8, xxhash.xxh3_128_digest(content.encode()), "" if content else "is bad")
        for row, content in zip(rows, contents, strict=True)
    }
    return Folder(Path(folder), make_index("csv", 0, build_columns(rows, looks, names, (nothing, nothing))))


def numbered(count: int) -> list[str]:
    return [f"image {number}" for number in range(count)]


def samples(source: Source) -> list[Sample]:
    return [source.sample(number) for number in range(len(source))]


def names(source: Source) -> list[str]:
    return [sample.place.path.name for sample in samples(source)]


def hashes(source: Source) -> set[str]:
    return {sample.content_hash for sample in samples(source)}


@pytest.mark.parametrize("choice", [{"share": 0.2}, {"count": 60}])
def test_parts_are_disjoint_whole_and_numbered_anew(choice: dict[str, float]) -> None:
    source = source_of(*numbered(300))
    training, held_out = hold_out(source, 0, **choice)  # type: ignore[arg-type]
    assert sorted(names(training) + names(held_out)) == sorted(names(source))
    assert 40 < len(held_out) < 80 if "share" in choice else len(held_out) == 60
    for part in (training, held_out):
        assert [sample.sample_id for sample in samples(part)] == list(range(len(part)))
        assert all(sample.text == f"text {sample.place.path.stem}" for sample in samples(part))


def test_the_choice_is_that_of_the_seed_and_the_content_alone() -> None:
    held = hashes(hold_out(source_of(*numbered(300)), 3, share=0.2)[1])
    assert hashes(hold_out(source_of(*numbered(300)), 3, share=0.2)[1]) == held
    assert hashes(hold_out(source_of(*numbered(300)[::-1], folder="elsewhere"), 3, share=0.2)[1]) == held
    assert hashes(hold_out(source_of(*numbered(300)), 4, share=0.2)[1]) != held
    # A larger share keeps what a smaller one holds, and a larger count what a smaller one does.
    assert held < hashes(hold_out(source_of(*numbered(300)), 3, share=0.4)[1])
    few, more = (hashes(hold_out(source_of(*numbered(300)), 3, count=count)[1]) for count in (5, 9))
    assert few < more


def test_the_draws_never_change() -> None:
    """Which images runs hold out; from the formula in integers of Python."""

    def mixed(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    source = source_of(*numbered(9))
    keys = [int(key) for key in sample_generator(11, "hold_out", 0, 0).integers(0, 2**64, 2, np.uint64)]
    halves = [
        [int.from_bytes(bytes.fromhex(sample.content_hash)[part], "little") for part in (slice(8), slice(8, 16))]
        for sample in samples(source)
    ]
    expected = [mixed(mixed(first ^ keys[0]) ^ second ^ keys[1]) for first, second in halves]
    assert image_draws(source, 11).tolist() == expected
    assert expected[0] == 4624071546665937587


def test_draws_are_even() -> None:
    draws = image_draws(source_of(*numbered(4000)), 0).astype(float) / 2**64
    counts = np.histogram(draws, 10, (0, 1))[0]
    assert ((counts - 400) ** 2 / 400).sum() < 27.9  # chi-squared of nine degrees: one in a thousand is above


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_duplicates_fall_on_one_side_and_other_rows_move_none(data: st.DataObject) -> None:
    """Of any two folders with any images twice: however rows are added, removed, broken or put in another order."""
    contents = st.lists(st.integers(0, 30).map(lambda n: f"image {n}" if n else ""), min_size=3, max_size=25)
    first, second = data.draw(contents), data.draw(contents)
    seed, share = data.draw(st.integers(0, 5)), data.draw(st.floats(0.1, 0.9))
    count = data.draw(st.integers(1, 8))

    def held_out(folders: Sequence[Sequence[str]], **choice: Any) -> tuple[set[str], set[str]] | None:
        try:
            parts = hold_out(join([source_of(*each) for each in folders]), seed, **choice)
        except DataError:  # nothing on one side
            return None
        return hashes(parts[0]), hashes(parts[1])

    before = held_out((first, second), share=share)
    changed = [data.draw(st.permutations(each + data.draw(contents)))[1:] for each in (first, second)]
    after = held_out(changed, share=share)
    if before and after:
        assert not before[0] & before[1]
        assert not before[0] & after[1]
        assert not before[1] & after[0]
    if by_count := held_out((first, second), count=count):
        training, held = by_count
        assert not training & held
        assert len(held) == count


def test_a_count_is_of_images_and_a_new_one_takes_the_place_of_the_last() -> None:
    contents = numbered(40)
    order = np.argsort(image_draws(source_of(*contents), 0))
    held = hold_out(source_of(*contents, *contents), 0, count=5)[1]
    assert len(held) == 10
    assert {sample.content_hash for sample in samples(held)} == {
        source_of(*contents).sample(int(number)).content_hash for number in order[:5]
    }
    without = [content for number, content in enumerate(contents) if number != order[0]]
    assert hashes(held) - hashes(hold_out(source_of(*without), 0, count=5)[1]) == hashes(source_of(contents[order[0]]))


@pytest.mark.parametrize("choice", [{"count": 5}, {"share": 1e-9}])
def test_neither_part_may_be_empty(choice: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"x: [05] of 5 samples would be held out"):
        hold_out(source_of(*numbered(5)), 0, **choice)  # type: ignore[arg-type]


def test_the_digest_tells_which_are_held_out_and_not_where_the_folder_is() -> None:
    training, held = hold_out(source_of(*numbered(50)), 0, count=5)
    elsewhere = hold_out(source_of(*numbered(50), folder="/somewhere/else"), 0, count=5)
    assert [part.digest for part in elsewhere] == [training.digest, held.digest]
    assert len({training.digest, held.digest, hold_out(source_of(*numbered(50)), 1, count=5)[0].digest}) == 3


@pytest.mark.parametrize("name", FORMATS)
def test_a_copy_is_held_out_with_its_image_in_every_format(name: str, tmp_path: Path) -> None:
    """The same images under other names in another folder and another format."""
    for part, form in (("first", name), ("second", "csv")):
        (tmp_path / part).mkdir()
        FORMATS[form][0](tmp_path / part)
    (tmp_path / "second" / "0.png").rename(tmp_path / "second" / "copy.png")
    table = tmp_path / "second" / "img_txt.csv"
    table.write_text(table.read_text().replace("0.png", "copy.png"))
    source = join([open_source(tmp_path / part) for part in ("first", "second")])
    training, held = hold_out(source, 0, count=1)
    assert (training.counts, held.counts) == ((2, 2), (1, 1))
    assert not hashes(training) & hashes(held)
    assert numbers_in_both(training, held).tolist() == []
    assert numbers_in_both(open_source(tmp_path / "first"), held).tolist() == [
        number for number in range(3) if open_source(tmp_path / "first").sample(number).content_hash in hashes(held)
    ]
