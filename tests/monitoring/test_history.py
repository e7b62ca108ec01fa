"""The step history: what a crash may leave behind, and what a resume makes of it."""

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import History, MonitorError

VALUES = st.one_of(st.integers(), st.floats(), st.booleans(), st.text())


def written(path: Path, steps: range) -> History:
    history = History(path)
    for step in steps:
        history.append({"step": step, "loss": 1 / step})
    return history


def test_no_file_is_an_empty_history(tmp_path: Path) -> None:
    history = History(tmp_path / "metrics.jsonl")
    history.truncate_after(5)
    assert history.read() == []
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.dictionaries(st.text(), VALUES)))
def test_records_come_back(tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, float]]) -> None:
    history = History(tmp_path_factory.mktemp("history") / "metrics.jsonl")
    numbered = [{**record, "step": step} for step, record in enumerate(records)]
    for record in numbered:
        history.append(record)
    found = history.read()
    assert [list(record) for record in found] == [list(record) for record in numbered]
    for before, after in zip(numbered, found, strict=True):
        for key, value in before.items():
            if isinstance(value, float) and not math.isfinite(value):
                assert math.isnan(after[key])
            else:
                assert after[key] == value
                assert type(after[key]) is type(value)


def test_every_line_is_strict_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    History(path).append({"step": 1, "loss": math.nan, "grad_norm": math.inf})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(path.read_text(), parse_constant=refuse) == {"step": 1, "loss": None, "grad_norm": None}


def test_record_is_in_the_file_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    written(path, range(1, 3))
    assert path.read_bytes().count(b"\n") == 2


@given(st.data())
def test_file_cut_at_any_byte_keeps_every_whole_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("history") / "metrics.jsonl"
    history = written(path, range(1, 6))
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    survivors = whole[:cut].count(b"\n")
    assert [record["step"] for record in history.read()] == list(range(1, survivors + 1))
    history.truncate_after(10)
    history.append({"step": 99, "loss": 0.0})
    assert [record["step"] for record in history.read()] == [*range(1, survivors + 1), 99]


def test_resume_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    history = written(tmp_path / "metrics.jsonl", range(1, 9))
    history.truncate_after(5)
    assert [record["step"] for record in history.read()] == [1, 2, 3, 4, 5]
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_failed_truncation_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    history = written(path, range(1, 9))
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("monitoring.history.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        history.truncate_after(5)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("damage", [b"\x00\x00\x00", b"[1, 2]", b'{"loss": 1.0}', b""])
def test_damage_before_the_last_line_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "metrics.jsonl"
    history = written(path, range(1, 4))
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([lines[0], damage, *lines[1:]]) + b"\n")
    with pytest.raises(MonitorError, match=r"metrics\.jsonl:2: "):
        history.read()
