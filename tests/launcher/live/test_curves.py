"""The charts are whole whatever the values, and the histories are read in the background, when they have grown."""

import json
import math
import re
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import pytest

from launcher.contract.run_dir import RunDir
from launcher.live import curves as module
from launcher.live.charts import Bar, error_chart, line_chart, running_mean, short, stacked_bar
from launcher.live.curves import CurveReader, Reading

PRINTED = {
    "loss": [[256, 1.0], [512, None], [768, 0.5]],
    "validation": [{"samples": 512, "bins": [{"log_snr": "3.2..1.0", "loss": 0.1, "standard_error": 0.01}]}],
    "parts": {"data": 1.0, "forward_backward": 3.0},
    "more": 1,
}


def inside(chart: str) -> bool:
    """Whether all points of the curve lie in the picture."""
    svg = ElementTree.fromstring(chart).find(".//svg")  # noqa: S314  made by us
    _, _, width, height = map(float, svg.get("viewBox").split())
    pairs = [pair.split(",") for line in svg.iter("polyline") for pair in line.get("points").split()]
    return all(0 <= float(x) <= width and 0 <= float(y) <= height for x, y in pairs)


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize(
    "values",
    [
        [1.0], [1.0, 1.0], [0.0, 0.0], [-1.0, 2.0], [1e-12, 1e12], [1e12, 1e-12],
        [math.nan, 1.0, None, 2.0, math.inf], [5e-324, 1.0], [1e300, 1e308], [3.0, 2.9999999],
    ],
)  # fmt: skip
def test_a_chart_is_whole_whatever_the_values(values: list[float | None], log: bool, smooth: bool) -> None:
    chart = line_chart("a & b", [(float(n), value) for n, value in enumerate(values)], "<u>", log=log, smooth=smooth)
    if any(value is not None and abs(value) < 1e100 and (value > 1e-100 or not log) for value in values):
        assert inside(chart)
    else:
        assert "no values yet" in chart
    assert "a &amp; b" in chart and "<u>" not in chart
    assert not re.search(r"\bnan\b|\binf\b", chart)


def test_a_chart_of_nothing_says_so() -> None:
    assert "no values yet" in line_chart("Loss", [])
    assert "no validation yet" in error_chart("Loss", [], "x")


def test_gaps_are_gaps_and_are_counted() -> None:
    chart = line_chart("Loss", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 1.5)])
    assert chart.count("<polyline") == 2
    assert "1 of 5 not finite" in chart


def test_the_running_mean_is_the_mean_of_a_symmetric_window() -> None:
    values = [float(n % 7) for n in range(200)]
    means = running_mean(list(enumerate(values)))
    for number, (x, mean) in enumerate(means):
        reach = min(4, number, 199 - number)
        window = values[number - reach : number + reach + 1]
        assert (x, mean) == (number, pytest.approx(sum(window) / len(window)))


def test_an_error_bar_spans_one_standard_error_up_and_down() -> None:
    svg = ElementTree.fromstring(error_chart("Loss", [Bar("a", 2.0, 0.5)], "x")).find("svg")  # noqa: S314
    rect = svg.find("rect")
    bottom = float(rect.get("y")) + float(rect.get("height"))
    unit = float(rect.get("height")) / 2.0
    low, high = map(float, re.match(r"M[\d.]+ ([\d.]+)V([\d.]+)", svg.find("path").get("d")).groups())
    assert (bottom - low) / unit == pytest.approx(1.5, abs=0.02)
    assert (bottom - high) / unit == pytest.approx(2.5, abs=0.02)


def test_a_stacked_bar_is_full() -> None:
    svg = ElementTree.fromstring(stacked_bar([("a", 1.0), ("b", 3.0)], 4.0, "spoken"))  # noqa: S314
    assert [float(rect.get("width")) for rect in svg.iter("rect")] == [250.0, 750.0]


@pytest.mark.parametrize(
    ("value", "text"), [(0.21434, "0.214"), (12345.6, "12,346"), (0.0, "0"), (2e-05, "2e-05"), (math.nan, "not finite")]
)
def test_numbers_have_three_digits(value: float, text: str) -> None:
    assert short(value) == text


def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str) -> CurveReader:
    """A reader whose export is a small program, with its calls counted in a file."""
    counted = f"open({str(tmp_path / 'calls')!r}, 'a').write('x'); {program}"
    monkeypatch.setattr(module, "own_program", lambda python, name: (sys.executable, "-c", counted))
    monkeypatch.setattr(module, "_LEAST_REST_S", 0.0)
    monkeypatch.setattr(module, "_REST", 0.0)
    run = RunDir(tmp_path)
    run.metrics_jsonl.write_text("{}\n")
    return CurveReader(run)


def wait(reader: CurveReader) -> Reading:
    """Read until the background is idle."""
    reader.read()
    deadline_s = time.monotonic() + 30
    while reader._worker.is_alive():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    return reader.read()


def test_curves_are_read_once_until_the_histories_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = reader(tmp_path, monkeypatch, f"print({json.dumps(PRINTED)!r})")
    reading = wait(curves)
    assert reading.fault == ""
    assert reading.curves.loss == ((256.0, 1.0), (512.0, None), (768.0, 0.5))
    assert reading.curves.validation[0].bins[0].log_snr == "3.2..1.0"
    assert reading.curves.parts == {"data": 1.0, "forward_backward": 3.0}
    for _ in range(5):
        wait(curves)
    assert (tmp_path / "calls").read_text() == "x"
    (tmp_path / "metrics.jsonl").write_text("{}\n{}\n")
    wait(curves)
    assert (tmp_path / "calls").read_text() == "xx"


@pytest.mark.parametrize(
    ("program", "fault"),
    [
        ("import sys; sys.exit('metrics.jsonl: line 3 is damaged')", "metrics.jsonl: line 3 is damaged"),
        ("print('[')", "validation error for Curves"),
        ("raise SystemExit(3)", "exit code 3"),
    ],
)
def test_a_failing_export_is_said_on_the_page(tmp_path: Path, monkeypatch, program: str, fault: str) -> None:
    reading = wait(reader(tmp_path, monkeypatch, program))
    assert reading.curves.loss == () and fault in reading.fault


def test_a_run_without_histories_starts_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = reader(tmp_path, monkeypatch, "print('{}')")
    (tmp_path / "metrics.jsonl").unlink()
    assert curves.read() == Reading()
    assert not (tmp_path / "calls").exists()
