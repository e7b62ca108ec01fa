"""The report's charts and table beside its curves: where marks lie, what is read aloud, and histories of old runs."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from monitoring import read_validations, render_report
from monitoring.records import Validation
from monitoring.report.attempts import attempts_table
from monitoring.report.charts import log_snr_chart, parts_chart
from support.histories import loss_row, step_row, write_rows

EVIL = "<script>alert('x')</script>\"&"


def validations(folder: Path, *rows: dict[str, Any]) -> list[Validation]:
    return read_validations(write_rows(folder / "validation.jsonl", rows))


def ranges(step: int, *losses: float | None) -> list[dict[str, Any]]:
    width = 1000 // len(losses)
    rows = [loss_row(step, n * width, (n + 1) * width - 1, loss) for n, loss in enumerate(losses)]
    return [loss_row(step, 0, 999, 0.5), *rows]


def test_points_and_standard_errors_lie_where_a_hand_computed_scale_puts_them(tmp_path: Path) -> None:
    (found,) = validations(tmp_path, *ranges(0, 1.0, 0.5))
    svg = ElementTree.fromstring(log_snr_chart(found.losses[1:]))  # noqa: S314
    # Two ranges on 72..502 px; 0..1.1 * (1.0 + 0.01) on 220..12 px, so a loss of 1 is 208 / 1.111 px high.
    circles = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in svg.iter("circle")]
    assert circles == [pytest.approx((179.5, 32.78), abs=0.06), pytest.approx((394.5, 126.39), abs=0.06)]
    bars = [
        (float(each.get("y1", "")), float(each.get("y2", "")))
        for each in svg.iter("line")
        if each.get("class") == "now"
    ]
    assert bars[0] == pytest.approx((34.65, 30.91), abs=0.06)


def test_ranges_are_read_aloud_and_a_loss_that_is_not_finite_has_no_point(tmp_path: Path) -> None:
    (found,) = validations(tmp_path, *ranges(0, 0.25, None))
    chart = log_snr_chart(found.losses[1:])
    assert 'aria-label="Held-out loss by log SNR: 4.0..0.0: 0.25 +- 0.01; 0.0..-4.0: nan +- 0.01"' in chart
    assert chart.count("<circle") == 1


def test_the_first_validation_is_drawn_faint_beside_the_last(tmp_path: Path) -> None:
    found = validations(tmp_path, *ranges(0, 1.0, 0.5), *ranges(8, 0.5, 0.25))
    html = render_report(
        title="a", facts=[], history=[step_row(1)], images_per_step=16, images=[], documents=[], held_out=found
    )
    assert html.count('<circle class="before"') == html.count('<circle class="now"') == 2
    assert "raw weights at 128 samples seen; faint: at 0" in html


def test_parts_are_stacked_to_the_whole_step() -> None:
    parts = {"encode_seconds": 0.0625, "forward_backward_seconds": 0.125, "update_seconds": 0.125}
    chart, legend = parts_chart([step_row(step, **parts) for step in range(1, 241)])
    svg = ElementTree.fromstring(chart)  # noqa: S314
    bars: dict[str, list[tuple[str, float]]] = {}
    for each in svg.iter("rect"):
        bars.setdefault(each.get("x", ""), []).append((each.get("class", ""), float(each.get("height", ""))))
    assert len(bars) == 60
    for bar in bars.values():
        assert [name for name, _ in bar] == ["part-0", "part-1", "part-2", "part-3", "part-4"]
        # 0.5 s on a scale up to 1.05 * 0.5 s over 208 px.
        assert sum(height for _, height in bar) == pytest.approx(208 / 1.05, abs=0.06)
        assert [height * 1.05 / 208 for _, height in bar] == pytest.approx([0.125, 0.125, 0.25, 0.25, 0.25], abs=1e-3)
    for words in ("data 12.5 %", "forward backward 25.0 %", "collective 25.0 %"):
        assert words in legend and words in chart


def test_steps_of_an_old_run_have_the_rest_apart() -> None:
    _, legend = parts_chart([step_row(1), step_row(2)])
    assert re.findall(r"(\w+) ([\d.]+) %", legend) == [("data", "12.5"), ("collective", "25.0"), ("other", "62.5")]


def test_a_step_that_compiles_is_cut_and_named() -> None:
    chart, legend = parts_chart([step_row(step, step_seconds=50.0 if step == 1 else 0.5) for step in range(1, 31)])
    assert "1 of 30 bars are higher, up to 50 s" in legend
    heights = [float(height) for height in re.findall(r'height="([\d.]+)"', chart)]
    assert max(heights) <= 208.01


@pytest.mark.parametrize("rows", [[], [{"step": 1}], [step_row(1, step_seconds=None, data_wait_seconds=None,
                                                               collective_seconds=None)]])  # fmt: skip
def test_without_durations_there_is_no_chart(rows: list[dict[str, Any]]) -> None:
    assert parts_chart(rows) == ("", "")


def test_attempts_have_their_end_and_lost_time_by_cause() -> None:
    lost = {"detection_s": 1.0, "delay_s": 10.5, "rollback_s": 4.0, "start_s": 2.0, "load_s": 0.25, "compile_s": 7.0}
    records = [
        {"attempt": 1, "started_unix_s": 1.8e9, "ended_unix_s": 1.8e9 + 90, "exit_code": 139, "text": EVIL,
         "resumed_step": 0, "last_step": 1402, "lost": {"start_s": 2.0}},
        {"attempt": 2, "started_unix_s": 1.8e9 + 100, "exit_code": None, "lost": lost},
    ]  # fmt: skip
    html = attempts_table(records)
    assert "26.8 s lost in 2 attempt(s): detection 1.0 s, delay 10.5 s, rollback 4.0 s, start 4.0 s" in html
    for cell in ("2027-01-15 08:00:00", "90 s", "0 to 1,402", "no verdict yet", "10.5"):
        assert f"<td>{cell}</td>" in html
    assert "<script" not in html and "exit code 139: &lt;script&gt;" in html
    ElementTree.fromstring(f"<div>{html}</div>")  # noqa: S314  it is balanced


@pytest.mark.parametrize("record", ['{"attempt": 1}', '{"attempt": 1, "lost": [], "started_unix_s": 1e300, "text": 5}'])
def test_an_attempt_of_another_version_is_shown_without_what_it_lacks(record: str) -> None:
    assert "0.0 s lost in 1 attempt(s)" in attempts_table([json.loads(record)])
