"""Which samples are held out."""

from pathlib import Path

import numpy as np
import pytest

from data import DataError, Sample, Source, hold_out
from data.index import make_index
from data.indexing import build_columns
from data.rows import Row
from data.source import Folder


def source_of(count: int) -> Source:
    rows = [Row(f"text {n}", f"x.csv:{n + 2}", f"{n}.png") for n in range(count)]
    names = {row.file: number for number, row in enumerate(rows)}
    nothing = np.zeros(count, np.int64)
    return Folder(Path("x"), make_index("csv", 0, build_columns(rows, {}, names, (nothing, nothing))))


def samples(source: Source) -> list[Sample]:
    return [source.sample(number) for number in range(len(source))]


def names(source: Source) -> list[str]:
    return [sample.place.path.name for sample in samples(source)]


@pytest.mark.parametrize("choice", [{"share": 0.2}, {"count": 60}])
def test_parts_are_disjoint_whole_and_numbered_anew(choice: dict[str, float]) -> None:
    source = source_of(300)
    training, held_out = hold_out(source, 0, **choice)  # type: ignore[arg-type]
    assert sorted(names(training) + names(held_out)) == sorted(names(source))
    assert 40 < len(held_out) < 80 if "share" in choice else len(held_out) == 60
    for part in (training, held_out):
        assert [sample.sample_id for sample in samples(part)] == list(range(len(part)))
        assert all(sample.text == f"text {sample.place.path.stem}" for sample in samples(part))


def test_the_choice_is_that_of_the_seed_and_the_ids_alone() -> None:
    held = names(hold_out(source_of(300), 3, share=0.2)[1])
    assert names(hold_out(source_of(300), 3, share=0.2)[1]) == held
    assert names(hold_out(source_of(300), 4, share=0.2)[1]) != held
    # Rows added at the end move none; a larger share keeps what a smaller one holds.
    assert names(hold_out(source_of(500), 3, share=0.2)[1])[: len(held)] == held
    assert {*held} < {*names(hold_out(source_of(300), 3, share=0.4)[1])}


@pytest.mark.parametrize("choice", [{"count": 5}, {"share": 1e-9}])
def test_neither_part_may_be_empty(choice: dict[str, float]) -> None:
    with pytest.raises(DataError, match=r"x: [05] of 5 samples would be held out"):
        hold_out(source_of(5), 0, **choice)  # type: ignore[arg-type]
