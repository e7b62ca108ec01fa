"""The report: parsed as HTML and XML, so that what is asserted is what a browser would see."""

import base64
import math
import re
from html.parser import HTMLParser
from io import BytesIO
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from monitoring import render_report
from monitoring.report.curves import (
    HEIGHT_PX,
    Axis,
    Curve,
    draw,
    linear_ticks,
    log_ticks,
    smoothed,
    thinned,
    tick_label,
)

VOID = {"meta", "img", "br", "hr", "link"}
LINEAR = Curve("T", "n", "x", "y", "loss", "linear", None)
LOG = Curve("T", "n", "x", "y", "loss", "log", lambda values: float(np.mean(values)))
EVIL = "<script>alert('x')</script>\"&"


class Page(HTMLParser):
    """Collects tags with attributes, text, and checks that tags are balanced."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def attributes(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]


def history(steps: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "samples_seen": 16 * step,
            "loss": 1 / step,
            "learning_rate": 1e-4,
            "step_seconds": 0.2,
            "grad_norm": 1.0,
            "data_wait_seconds": 0.001,
        }
        for step in range(1, steps + 1)
    ]


def picture(format_name: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, format_name)
    return buffer.getvalue()


def report(**changes: Any) -> str:
    arguments: dict[str, Any] = {
        "title": "Run a",
        "facts": [("ranks", "2"), ("median step", "200 ms (80 images/s)")],
        "history": history(50),
        "images_per_step": 16,
        "images": [("grid", picture("PNG"))],
        "documents": [("train.yaml", "seed: 0\n")],
    }
    return render_report(**{**arguments, **changes})


def points(svg: ElementTree.Element, style: str) -> list[tuple[float, float]]:
    lines = [element for element in svg.iter("polyline") if element.get("class") == style]
    assert len(lines) == 1
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in str(lines[0].get("points")).split())]


def test_page_holds_what_was_given() -> None:
    page = Page(report())
    text = " ".join(page.text)
    for expected in ("Run a", "ranks", "200 ms", "80 images/s", "Loss", "Throughput", "Learning rate", "seed: 0"):
        assert expected in text
    assert len(page.attributes("svg")) == 5
    assert len(page.attributes("details")) == 1


@pytest.mark.parametrize(("format_name", "media_type"), [("PNG", "image/png"), ("JPEG", "image/jpeg")])
def test_images_are_inside_the_page(format_name: str, media_type: str) -> None:
    image = picture(format_name)
    (attributes,) = Page(report(images=[("grid", image)])).attributes("img")
    head, encoded = str(attributes["src"]).split(",")
    assert head == f"data:{media_type};base64"
    assert base64.b64decode(encoded) == image


def test_unknown_image_format_is_refused() -> None:
    with pytest.raises(ValueError, match="neither PNG nor JPEG"):
        report(images=[("grid", b"GIF89a")])


def test_page_loads_nothing_and_runs_nothing() -> None:
    html = report()
    page = Page(html)
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert all(str(attributes[name]).startswith("data:") for name in ("src", "href") if name in attributes)
    assert not re.search(r"https?://|@import|url\(", html)
    policies = [str(tag["content"]) for tag in page.attributes("meta") if tag.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_all_text_is_escaped() -> None:
    html = report(title=EVIL, facts=[(EVIL, EVIL)], images=[(EVIL, picture("PNG"))], documents=[(EVIL, EVIL)])
    page = Page(html)
    assert not page.attributes("script")
    text = "".join(page.text)
    assert text.count(EVIL) >= 6
    assert page.attributes("img")[0]["alt"] == EVIL


def test_dark_scheme_redefines_every_colour() -> None:
    html = report()
    light, dark = html.split("@media (prefers-color-scheme: dark)")
    declared = set(re.findall(r"(--[a-z]+): #", light))
    assert declared
    assert declared == set(re.findall(r"(--[a-z]+): #", dark.split("* { box-sizing")[0]))


def test_run_without_steps_says_so() -> None:
    page = Page(report(history=[]))
    assert "No step was recorded." in page.text
    assert not page.attributes("svg")


def test_steps_that_are_not_finite_are_marked_and_told() -> None:
    records = history(50)
    records[9]["loss"] = math.nan
    records[19]["loss"] = math.nan
    html = report(history=records)
    assert "2 not finite, marked on the axis" in html
    assert html.count('class="gap"') == 2


def test_linear_curve_passes_through_its_points() -> None:
    svg = ElementTree.fromstring(draw(LINEAR, [0, 10, 20], [0.0, 1.0, 4.0]))  # noqa: S314
    (x0, y0), (x1, y1), (x2, y2) = points(svg, "main")
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert (y0 - y2) == pytest.approx(4 * (y0 - y1), abs=0.5)


def test_log_curve_makes_equal_ratios_equal_distances() -> None:
    svg = ElementTree.fromstring(draw(LOG, [1, 2, 3], [1.0, 0.1, 0.01]))  # noqa: S314
    (_, y0), (_, y1), (_, y2) = points(svg, "raw")
    assert y1 - y0 == pytest.approx(y2 - y1, abs=0.2)
    assert y1 - y0 > 20


@settings(deadline=None)
@given(
    st.lists(st.floats(allow_nan=True, allow_infinity=True, width=32), min_size=1, max_size=60),
    st.sampled_from([LINEAR, LOG]),
)
def test_anything_drawn_stays_inside_the_picture(values: list[float], curve: Curve) -> None:
    svg = ElementTree.fromstring(draw(curve, list(range(len(values))), values))  # noqa: S314
    for line in svg.iter("polyline"):
        for x, y in points(svg, str(line.get("class"))):
            assert 0 <= x <= curve.width_px
            assert 0 <= y <= HEIGHT_PX


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_linear_ticks_are_even_round_and_inside(low: float, width: float) -> None:
    high = low + width
    ticks = linear_ticks(low, high)
    assert 2 <= len(ticks) <= 8
    slack = 1e-6 * (abs(low) + abs(high))
    assert all(low - slack <= tick <= high + slack for tick in ticks)
    spacings = np.diff(ticks)
    assert spacings == pytest.approx(spacings[0], rel=1e-3)
    assert f"{spacings[0]:.0e}"[0] in "125"


@given(st.floats(1e-9, 1e6), st.floats(3, 1e9))
def test_log_ticks_are_inside_and_few(low: float, ratio: float) -> None:
    ticks = log_ticks(low, low * ratio)
    assert 1 <= len(ticks) <= 8
    assert all(low * 0.999 <= tick <= low * ratio * 1.001 for tick in ticks)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.05, "0.05"), (2e-5, "2e-05"), (120, "120"), (12000, "12,000"), (1e9, "1e+09")]
)
def test_tick_labels(value: float, text: str) -> None:
    assert tick_label(value) == text


def test_axis_maps_its_ends() -> None:
    axis = Axis(1.0, 100.0, 10, 20, "log")
    assert [axis.px(value) for value in (1.0, 10.0, 100.0)] == pytest.approx([10, 15, 20])


def test_smoothing_keeps_a_straight_line_and_calms_noise() -> None:
    x = np.arange(1000.0)
    places, line = smoothed(x, 3 * x, lambda values: float(np.mean(values)))
    inner = slice(10, -10)
    assert line[inner] == pytest.approx(3 * places[inner])
    noise = np.random.default_rng(0).normal(size=1000)
    _, calm = smoothed(x, noise, lambda values: float(np.mean(values)))
    assert calm.std() < 0.3 * noise.std()


def test_thinning_keeps_the_extremes_and_bounds_the_size() -> None:
    y = np.random.default_rng(1).normal(size=100_000)
    y[54_321], y[9] = 99.0, -99.0
    x, kept = thinned(np.arange(100_000.0), y)
    assert len(kept) <= 1000
    assert (kept.min(), kept.max()) == (-99.0, 99.0)
    assert np.all(np.diff(x) > 0)


def test_long_run_makes_a_small_page() -> None:
    assert len(report(history=history(50_000), images=[])) < 120_000
