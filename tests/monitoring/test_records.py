"""Histories that are damaged, resumed, replaced or written to while they are read."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import records
from monitoring.records import Rows, number, read_attempts, step_parts, validations, with_rates
from support.histories import loss_row, step_row, write_rows


def read(path: Path, *rows: Any) -> list[int]:
    return [row["step"] for row in Rows(write_rows(path, rows))]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([1, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 2, 3, 4], [1, 2, 3, 4]),
        ([1, 2, 3, 4, 5, 4, 2, 3], [1, 2, 3]),
        ([1, 2, 3, 4, 3, 4, 5, 4, 5, 6], [1, 2, 3, 4, 5, 6]),
        ([5, 5, 5], [5]),
        ([3, 2, 1], [1]),
        ([10, 20, 30, 15], [10, 15]),
    ],
)
def test_a_later_attempt_replaces_rows(tmp_path: Path, steps: list[int], expected: list[int]) -> None:
    assert read(tmp_path / "m.jsonl", *map(step_row, steps)) == expected


@given(st.lists(st.integers(1, 12), max_size=40))
def test_the_rows_kept_are_those_of_a_plain_definition(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int]
) -> None:
    path = tmp_path_factory.mktemp("rows") / "m.jsonl"
    rows = [{"step": step, "place": place} for place, step in enumerate(steps)]
    # A row remains when all later rows are of later steps.
    expected = [place for place, step in enumerate(steps) if all(step < later for later in steps[place + 1 :])]
    assert [row["place"] for row in Rows(write_rows(path, rows))] == expected


def test_the_later_row_is_the_one_kept(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [step_row(1), step_row(2, loss=9.0), step_row(2, loss=0.5)])
    assert [row["loss"] for row in Rows(path)] == [1.0, 0.5]


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[1]",
        "null",
        '{"step": "3"}',
        '{"step": true}',
        '{"step": 1.5}',
        '{"loss": 1}',
        "\udcff\udcfe",
        "\0" * 100,
        "[" * 9000,
        '{"step": 3, "text": "' + "x" * 200_000 + '"}',
    ],
)
def test_damaged_lines_are_left_out_and_counted(tmp_path: Path, line: str) -> None:
    path = tmp_path / "m.jsonl"
    first, last = json.dumps(step_row(1)), json.dumps(step_row(2))
    path.write_bytes(f"{first}\n{line}\n{last}\n".encode(errors="surrogateescape"))
    rows = Rows(path)
    assert [row["step"] for row in rows] == [1, 2]
    assert (rows.first_damaged, rows.damaged) == (2, 1)


def test_a_torn_last_line_is_left_out_in_silence(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [step_row(1), json.dumps(step_row(2))])
    rows = Rows(path)
    assert [row["step"] for row in rows] == [1]
    assert rows.damaged == 0


def test_no_file_is_no_row(tmp_path: Path) -> None:
    assert list(Rows(tmp_path / "none.jsonl")) == []


def test_rows_written_meanwhile_are_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", map(step_row, range(1, 4000)))
    rows = iter(Rows(path))
    found = [next(rows)["step"]]
    with path.open("a") as file:
        file.write(json.dumps(step_row(4000)) + "\n")
    assert [*found, *(row["step"] for row in rows)] == list(range(1, 4000))


def test_a_resume_that_replaces_the_file_meanwhile_does_no_harm(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", map(step_row, range(1, 4000)))
    rows = iter(Rows(path))
    next(rows)
    write_rows(tmp_path / "new", map(step_row, range(1, 3))).replace(path)
    assert [row["step"] for row in rows] == list(range(2, 4000))


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), (0.5, 0.5), (None, math.nan), ("1", math.nan), (True, math.nan), ([], math.nan), (10**400, math.nan)],
)
def test_a_number_is_a_number(value: object, expected: float) -> None:
    assert number({"a": value}, "a") == pytest.approx(expected, nan_ok=True)
    assert math.isnan(number({"a": value}, "b"))


def test_parts_add_up_to_the_step_and_old_rows_have_the_rest_apart() -> None:
    assert step_parts(step_row(1)) == {"data": 0.0625, "collective": 0.125, "other": 0.3125}
    whole = {"encode_seconds": 0.0625, "forward_backward_seconds": 0.125, "update_seconds": 0.125, "graph_seconds": 0.0}
    parts = step_parts(step_row(1, **whole))
    assert "other" not in parts
    assert sum(parts.values()) == 0.5
    assert step_parts({"step_seconds": None, "data_wait_seconds": -1}) == {}


def test_images_per_second_count_all_ranks_also_between_rows_that_are_steps_apart(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "m.jsonl", [step_row(1), step_row(4), step_row(5, step_seconds=0)])
    rates = [row["images_per_second"] for row in with_rates(Rows(path))]
    assert rates == pytest.approx([32.0, 32.0, math.nan], nan_ok=True)


def test_validations_have_the_whole_first_and_ranges_from_little_noise_to_much(tmp_path: Path) -> None:
    rows = [
        loss_row(0, 500, 999, 0.3, log_snr_low=None), loss_row(0, 0, 999, 0.2), loss_row(0, 0, 499, 0.1),
        loss_row(0, 0, 999, 0.4, weights="ema"), loss_row(8, 0, 999, 0.15), loss_row(8, 0, 499, 9.0),
        loss_row(4, 0, 999, 0.12),
    ]  # fmt: skip
    found = list(validations(Rows(write_rows(tmp_path / "v.jsonl", rows), rows_share_steps=True)))
    assert [(each.step, each.weights) for each in found] == [(0, "raw"), (0, "ema"), (4, "raw")]
    names = [(loss.name, loss.log_snr, loss.row["loss"]) for loss in found[0].losses]
    assert names == [("all", "4.0..-4.0", 0.2), ("0", "4.0..0.0", 0.1), ("1", "0.0..-inf", 0.3)]


def test_ranges_without_log_snr_are_named_by_timesteps(tmp_path: Path) -> None:
    rows = [{"step": 1, "samples_seen": 16, "weights": "raw", "first_timestep": 0, "last_timestep": 99, "loss": 1.0}]
    (found,) = validations(Rows(write_rows(tmp_path / "v.jsonl", rows), rows_share_steps=True))
    assert found.losses[0].log_snr == "timesteps 0-99"


def test_attempts_are_read_in_order_and_damaged_ones_are_left_out(tmp_path: Path) -> None:
    for number_, text in (("0002", '{"attempt": 2}'), ("0001", '{"attempt": 1}'), ("0003", "{"), ("0004", "[]")):
        (tmp_path / "attempts" / number_).mkdir(parents=True)
        (tmp_path / "attempts" / number_ / "attempt.json").write_text(text)
    assert [each["attempt"] for each in read_attempts(tmp_path)] == [1, 2]
    assert read_attempts(tmp_path / "none") == []


def test_memory_does_not_grow_with_the_longest_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_LONGEST_LINE_BYTES", 256)
    long = '{"step": 2, "text": "' + "x" * 10_000 + '"}\n'
    assert read(tmp_path / "m.jsonl", {"step": 1}, long, {"step": 3}) == [1, 3]
