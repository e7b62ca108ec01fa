"""What the trainer relies on: the record's keys, the facts' table, the axes, and where a point is drawn."""

import re
from xml.etree import ElementTree

import pytest

from monitoring import render_report
from monitoring.report.curves import Curve, draw


def page(samples_per_step: int = 16) -> str:
    keys = ("step", "samples_seen", "loss", "grad_norm", "learning_rate", "step_seconds", "data_wait_seconds")
    history = [dict(zip(keys, (s, samples_per_step * s, 1 / s, 1.0, 1e-4, 0.2, 0.001), strict=True)) for s in (1, 2, 3)]
    return render_report(
        title="Run a", facts=[("ranks", "2")], history=history, images_per_step=16, images=[], documents=[]
    )


def test_keys_of_the_contract_suffice_and_axes_are_named() -> None:
    html = page()
    assert html.count(">samples seen</text>") == 5
    for unit in ("loss (MSE of v)", "images/s", "learning rate", "gradient norm", "s/step"):
        assert f">{unit}</text>" in html


def test_curves_run_over_samples_not_steps() -> None:
    *labels, parts = re.findall(r'aria-label="([^"]+)"', page(samples_per_step=1000))
    assert parts.startswith("Parts of a step")
    assert [re.findall(r"at ([\d,]*\d)", label) for label in labels] == [["1,000", "3,000"]] * 4


def test_held_out_losses_have_a_curve_of_their_own() -> None:
    history = [{"step": 1, "samples_seen": 16, "loss": 1.0, "learning_rate": 1e-4, "step_seconds": 0.2}]
    validations = [{"samples_seen": 0, "loss": 0.75}, {"samples_seen": 160, "loss": 0.5}]
    html = render_report(
        title="a", facts=[], history=history, images_per_step=16, images=[], documents=[], validations=validations
    )
    assert 'aria-label="Held-out loss: 0.75 at 0, 0.5 at 160 samples seen"' in html
    assert "Held-out" not in page()


def test_facts_are_a_table() -> None:
    assert '<tr><th scope="row">ranks</th><td>2</td></tr>' in page()


def test_points_lie_where_a_hand_computed_scale_puts_them() -> None:
    curve = Curve("T", "n", "x", "y", "loss", "linear", None)
    svg = ElementTree.fromstring(draw(curve, [0, 50, 200], [0.0, 5.0, 10.0]))  # noqa: S314
    (line,) = svg.iter("polyline")
    drawn = [tuple(map(float, pair.split(","))) for pair in str(line.get("points")).split()]
    # Frame: x 0..200 on 72..502 px; y 0..10.6 (6 % of head room) on 220..12 px.
    # x: 72, 72 + 430 / 4, 502. y: 220, 220 - 208 * 5 / 10.6 = 121.887, 220 - 208 * 10 / 10.6 = 23.774.
    for found, expected in zip(drawn, [(72, 220), (179.5, 121.887), (502, 23.774)], strict=True):
        assert found == pytest.approx(expected, abs=0.051)


def test_step_without_duration_is_marked_rather_than_fatal() -> None:
    record = {"step": 1, "samples_seen": 16, "loss": 1.0, "learning_rate": 1e-4, "step_seconds": 0.0}
    html = render_report(title="a", facts=[], history=[record], images_per_step=16, images=[], documents=[])
    assert "1 not finite, marked on the axis" in html
