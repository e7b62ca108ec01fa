"""Exports, read back with pandas, PyArrow and TensorBoard, and compared with the histories they come from."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyarrow import parquet
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from monitoring.export import main, write_folder
from monitoring.tables import STEP_COLUMNS, VALIDATION_COLUMNS
from monitoring.thinning import MAX_POINTS
from support.histories import loss_row, step_row, write_rows

STEPS = [
    step_row(1),
    step_row(2, loss=None, finite=False, foreign={"a": [1]}),
    step_row(3, loss=7.8, samples_seen=48),
    step_row(2, loss=0.25, unix_s=1.8e9 + 60, update_seconds=0.03125),
    step_row(3, loss=None, unix_s=1.8e9 + 61, grad_norm=None),
    step_row(4, loss=0.5, unix_s=1.8e9 + 62),
]
LOSSES = [
    loss_row(0, 0, 999, 0.5),
    loss_row(0, 0, 499, 0.75),
    loss_row(0, 500, 999, 0.25, log_snr_low=None),
    loss_row(4, 0, 999, 0.125, standard_error=None),
    loss_row(4, 0, 499, None, weights="ema"),
]
KEPT = [STEPS[0], *STEPS[3:]]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_rows(tmp_path / "run" / "metrics.jsonl", STEPS)
    write_rows(tmp_path / "run" / "validation.jsonl", LOSSES)
    return tmp_path / "run"


def export(run: Path, form: str, *options: str) -> Path:
    folder = run.parent / form
    assert main([str(run), "--to", form, "--output", str(folder), *options]) == 0
    return folder


def column(rows: list[dict[str, Any]], name: str) -> list[float]:
    return [math.nan if row.get(name) is None else float(row[name]) for row in rows]


def check_tables(steps: pd.DataFrame, losses: pd.DataFrame) -> None:
    assert list(steps.columns) == list(STEP_COLUMNS)
    assert list(losses.columns) == list(VALIDATION_COLUMNS)
    for name in set(STEP_COLUMNS) - {"images_per_second"}:
        np.testing.assert_array_equal(steps[name].astype(float), column(KEPT, name), err_msg=name)
    np.testing.assert_array_equal(steps["images_per_second"], [32.0] * 4)
    assert list(losses["weights"]) == ["raw", "raw", "raw", "raw", "ema"]
    assert list(losses["bin"].astype(str)) == ["all", "0", "1", "all", "all"]
    np.testing.assert_array_equal(losses["loss"], column(LOSSES, "loss"))
    np.testing.assert_array_equal(losses["standard_error"], column(LOSSES, "standard_error"))
    np.testing.assert_array_equal(losses["log_snr_low"], [-4.0, 0.0, -math.inf, -4.0, 0.0])
    # A validation's time is that of its step; the first step took 0.5 s.
    np.testing.assert_array_equal(losses["unix_s"], [1.8e9 + 0.5] * 3 + [1.8e9 + 62] * 2)


def test_csv_has_the_histories_numbers(run: Path) -> None:
    folder = export(run, "csv")
    # pandas' quicker reader is off by a unit in the last place.
    check_tables(
        *(pd.read_csv(folder / name, float_precision="round_trip") for name in ("metrics.csv", "validation.csv"))
    )
    assert (folder / "metrics.csv").read_text().splitlines()[3].startswith("3,48,1800000061.0,nan,nan,")


def test_parquet_has_the_histories_numbers_and_types(run: Path) -> None:
    folder = export(run, "parquet")
    steps = parquet.read_table(folder / "metrics.parquet")
    check_tables(steps.to_pandas(), parquet.read_table(folder / "validation.parquet").to_pandas())
    types = {"int": "int64", "float": "double", "bool": "bool", "str": "string"}
    assert [str(field.type) for field in steps.schema] == [types[kind] for kind in STEP_COLUMNS.values()]
    # NaN of a step is not the absence of a value.
    assert steps["loss"].null_count == 0
    assert steps["graph_seconds"].null_count == 4


def test_event_files_have_the_histories_numbers_over_samples(run: Path) -> None:
    events = EventAccumulator(str(export(run, "tensorboard")), size_guidance={"scalars": 0})
    events.Reload()
    loss = events.Scalars("train/loss")
    assert [each.step for each in loss] == [16, 32, 48, 64]
    assert [each.wall_time for each in loss] == column(KEPT, "unix_s")
    np.testing.assert_array_equal([each.value for each in loss], np.float32(column(KEPT, "loss")))
    norms = [each.value for each in events.Scalars("train/grad_norm")]
    np.testing.assert_array_equal(norms, np.float32(column(KEPT, "grad_norm")))
    assert [(each.step, each.value) for each in events.Scalars("validation_raw/loss")] == [(0, 0.5), (64, 0.125)]
    assert [(each.step, each.value) for each in events.Scalars("validation_raw/loss_log_snr_0.0..-inf")] == [(0, 0.25)]
    assert [each.value for each in events.Scalars("step_part/data_s")] == [0.0625] * 4
    assert [each.value for each in events.Scalars("step_part/update_s")] == [0.03125]


def test_curves_are_the_histories_and_json_without_nan(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run), "--to", "curves"]) == 0
    first = capsys.readouterr().out
    curves = json.loads(first, parse_constant=lambda name: pytest.fail(name))
    assert curves["loss"] == [[16, 1.0], [32, 0.25], [48, None], [64, 0.5]]
    assert curves["images_per_second"] == [[16, 32.0], [32, 32.0], [48, 32.0], [64, 32.0]]
    assert curves["step_s"][0] == [16, 0.5]
    assert curves["parts"]["data"] == 0.25
    assert sum(curves["parts"].values()) == 2.0
    assert [(each["samples"], each["weights"], each["loss"]) for each in curves["validation"]] == [
        (0, "raw", 0.5), (64, "raw", 0.125), (64, "ema", None),
    ]  # fmt: skip
    assert curves["validation"][0]["bins"] == [
        {"bin": "0", "log_snr": "4.0..0.0", "loss": 0.75, "standard_error": 0.01},
        {"bin": "1", "log_snr": "0.0..-inf", "loss": 0.25, "standard_error": 0.01},
    ]
    assert main([str(run), "--to", "curves"]) == 0
    assert capsys.readouterr().out == first


def test_curves_of_a_long_run_are_short_and_keep_its_spike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [step_row(step, loss=7.8 if step == 7777 else 1.0) for step in range(1, 10_001)]
    write_rows(tmp_path / "metrics.jsonl", rows)
    write_rows(tmp_path / "validation.jsonl", [loss_row(step, 0, 999, 1.0) for step in range(2000)])
    assert main([str(tmp_path), "--to", "curves"]) == 0
    curves = json.loads(capsys.readouterr().out)
    assert all(len(curves[name]) <= MAX_POINTS for name in ("loss", "grad_norm", "images_per_second", "step_s"))
    assert [16 * 7777, 7.8] in curves["loss"]
    assert len(curves["validation"]) <= MAX_POINTS


def test_curves_of_a_run_that_has_not_trained_are_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plan.json").touch()
    assert main([str(tmp_path), "--to", "curves"]) == 0
    names = ("loss", "grad_norm", "images_per_second", "step_s", "validation")
    assert json.loads(capsys.readouterr().out) == {name: [] for name in names} | {"parts": {}}


def test_a_run_that_is_written_to_is_exported_up_to_its_last_whole_line(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_row(5))[:-9])
    assert list(pd.read_csv(export(run, "csv") / "metrics.csv")["step"]) == [1, 2, 3, 4]


def test_damaged_lines_are_reported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(run / "metrics.jsonl", [step_row(1), "{}\n", step_row(2)])
    assert len(pd.read_csv(export(run, "csv") / "metrics.csv")) == 2
    expected = f"{run}/metrics.jsonl:2: not a record; 1 such line(s) are left out\n"
    assert capsys.readouterr().err == expected


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    assert main([str(word) for word in argv]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    return line


def test_bad_input_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    there = run.parent / "there"
    write_rows(there / "mine.txt", ["text"])
    assert "no such folder" in refused(capsys, run / "none", "--to", "csv", "--output", run.parent / "a")
    assert "not a run directory" in refused(capsys, there, "--to", "curves")
    assert "needs --output" in refused(capsys, run, "--to", "csv")
    assert "--overwrite" in refused(capsys, run, "--to", "csv", "--output", there)
    assert "'mine.txt'" in refused(capsys, run, "--to", "csv", "--output", there, "--overwrite")
    assert "no export's" in refused(capsys, run, "--to", "csv", "--output", run, "--overwrite")
    assert "else than a folder" in refused(capsys, run, "--to", "csv", "--output", there / "mine.txt")
    assert "mine.txt: File exists" in refused(capsys, run, "--to", "csv", "--output", there / "mine.txt" / "a")
    assert "standard output" in refused(capsys, run, "--to", "curves", "--output", run.parent / "a")
    write_rows(run / "metrics.jsonl", [])
    assert "found no step" in refused(capsys, run, "--to", "csv", "--output", run.parent / "a")
    assert sorted(path.name for path in run.parent.iterdir()) == ["run", "there"]
    assert (there / "mine.txt").read_text() == "text"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a file system that nobody can write")
def test_an_output_that_cannot_be_written_is_one_line(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "/proc/" in refused(capsys, run, "--to", "csv", "--output", "/proc/vpred-export")


@pytest.mark.parametrize(("form", "package"), [("parquet", "pyarrow"), ("tensorboard", "tensorboardX")])
def test_a_missing_package_is_named_and_nothing_remains(run: Path, form: str, package: str) -> None:
    code = (
        f"import sys; sys.modules[{package!r}] = None; from monitoring.export import main; sys.exit(main(sys.argv[1:]))"
    )
    argv = [sys.executable, "-c", code, str(run), "--to", form, "--output", str(run.parent / "a")]
    answer = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert answer.returncode == 2
    assert "pip install 'vpred[export]'" in answer.stderr
    assert len(answer.stderr.splitlines()) == 1
    assert [path.name for path in run.parent.iterdir()] == ["run"]


def test_an_export_replaces_another_only_when_asked(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = export(run, "csv")
    capsys.readouterr()
    write_rows(run / "metrics.jsonl", [step_row(1)])
    assert "--overwrite" in refused(capsys, run, "--to", "csv", "--output", folder)
    assert len(pd.read_csv(folder / "metrics.csv")) == 4
    assert export(run, "csv", "--overwrite") == folder
    assert len(pd.read_csv(folder / "metrics.csv")) == 1
    assert sorted(path.name for path in run.parent.iterdir()) == ["csv", "run"]


def test_a_write_that_fails_leaves_the_old_export(tmp_path: Path) -> None:
    old = write_rows(tmp_path / "csv" / "metrics.csv", ["old"])

    def fail(folder: Path) -> None:
        (folder / "metrics.csv").write_text("new")
        raise OSError

    with pytest.raises(OSError):
        write_folder(tmp_path / "csv", True, fail)
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["csv"]


def test_vpred_launch_starts_the_export(run: Path) -> None:
    program = Path(sys.executable).with_name("vpred-launch")
    argv = [program, "export", "run", "--to", "csv", "--output", "out"]
    answer = subprocess.run(argv, capture_output=True, text=True, cwd=run.parent)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert list(pd.read_csv(run.parent / "out" / "metrics.csv")["step"]) == [1, 2, 3, 4]
    answer = subprocess.run(argv, capture_output=True, text=True, cwd=run.parent)
    assert answer.returncode == 2
    assert len(answer.stderr.splitlines()) == 1
