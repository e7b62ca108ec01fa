"""Renders the report of a run: one HTML file that needs no other file, no script and no network."""

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from monitoring.records import Row, Validation, number
from monitoring.report.attempts import attempts_table
from monitoring.report.charts import log_snr_chart, parts_chart
from monitoring.report.curves import Curve, Floats, draw
from monitoring.report.style import STYLE


def mean(values: Floats) -> float:
    return float(np.mean(values))


def median(values: Floats) -> float:
    return float(np.median(values))


SEEN = "samples seen"
LOSS_NOTE = "log scale; faint: every step, line: running mean"
LOSS = Curve("Loss", LOSS_NOTE, SEEN, "loss (MSE of v)", "loss", "log", mean, width_px=1140)
THROUGHPUT_NOTE = "all ranks; faint: every step, line: running median"
THROUGHPUT = Curve("Throughput", THROUGHPUT_NOTE, SEEN, "images/s", "throughput", "linear", median)
GRAD_NORM_NOTE = "log scale; before clipping; line: running median"
GRAD_NORM = Curve("Gradient norm", GRAD_NORM_NOTE, SEEN, "gradient norm", "norm", "log", median)
LEARNING_RATE = Curve("Learning rate", "of every step", SEEN, "learning rate", "rate", "linear", None)
VALIDATION_NOTE = "log scale; of the averaged weights, on images that are never trained on"
VALIDATION = Curve("Held-out loss", VALIDATION_NOTE, SEEN, "loss (MSE of v)", "held-out", "log", None)

IMAGE_SIGNATURES: dict[bytes, str] = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}

# The browser must load nothing, whatever a caption or a configuration contains.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def render_report(
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    history: Sequence[Mapping[str, Any]],
    images_per_step: int,
    images: Sequence[tuple[str, bytes]],
    documents: Sequence[tuple[str, str]],
    validations: Sequence[Mapping[str, Any]] = (),
    held_out: Sequence[Validation] = (),
    attempts: Sequence[Row] = (),
) -> str:
    """Render the page as HTML. All text is escaped.

    facts: (name, value) pairs for the summary.
    history: records of `History.read` with step, samples_seen, loss, learning_rate and step_seconds.
    images: (caption, PNG or JPEG file) pairs.
    documents: (name, text) pairs, shown folded.
    validations: held-out losses with samples_seen and loss.
    held_out: the same validations with their ranges of log SNR.
    attempts: records of `read_attempts`.
    Raises ValueError: when an image has another format.
    """
    charts = [*_curves(history, images_per_step, validations), *_held_out(held_out), *_parts(history)]
    none = '<p class="none">No step was recorded.</p>'
    body = [
        f"<header><h1>{escape(title)}</h1>{_subtitle(history)}</header>",
        _section("Summary", _facts(facts)),
        _section("Curves", f'<div class="charts">{"".join(charts)}</div>' if history else none),
        *([_section("Attempts", attempts_table(attempts))] if attempts else []),
        *([_section("Samples", "".join(_figure(caption, image) for caption, image in images))] if images else []),
        *([_section("Configuration", "".join(_folded(*document) for document in documents))] if documents else []),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(body)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(heading: str, content: str) -> str:
    return f"<section>\n<h2>{escape(heading)}</h2>\n{content}\n</section>"


def _subtitle(history: Sequence[Mapping[str, Any]]) -> str:
    if not history:
        return ""
    last = history[-1]
    return f"<p>step {last['step']:,}, {last['samples_seen']:,} samples seen</p>"


def _facts(facts: Sequence[tuple[str, str]]) -> str:
    return f'<table class="facts"><tbody>{"".join(_fact(*fact) for fact in facts)}</tbody></table>'


def _fact(name: str, value: str) -> str:
    """Render one row; an explanation in brackets at the end of the value is set smaller."""
    figure, bracket, detail = value.partition(" (")
    small = f"<small>{escape(detail[:-1])}</small>" if bracket and detail.endswith(")") else ""
    return f'<tr><th scope="row">{escape(name)}</th><td>{escape(figure if small else value)}{small}</td></tr>'


def _curves(
    history: Sequence[Mapping[str, Any]], images_per_step: int, validations: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    if not history:
        return
    series = [
        (LOSS, [record["loss"] for record in history]),
        (THROUGHPUT, [_rate(images_per_step, record["step_seconds"]) for record in history]),
        (GRAD_NORM, [number(record, "grad_norm") for record in history]),
        (LEARNING_RATE, [record["learning_rate"] for record in history]),
    ]
    seen = [record["samples_seen"] for record in history]
    for curve, values in series:
        yield _chart(curve, seen, values)
    if validations:
        places = [record["samples_seen"] for record in validations]
        yield _chart(VALIDATION, places, [record["loss"] for record in validations])


def _held_out(validations: Sequence[Validation]) -> Iterator[str]:
    """Yield the chart of the last validation's ranges, against the first's."""
    if not validations or len(validations[-1].losses) < 2:
        return
    last, first = validations[-1], validations[0]
    note = f"bars: standard error over images; {last.weights} weights at {last.samples_seen:,.0f} samples seen"
    same = first is not last and [each.log_snr for each in first.losses] == [each.log_snr for each in last.losses]
    if same:
        note += f"; faint: at {first.samples_seen:,.0f}"
    yield _framed(
        "Held-out loss by log SNR", note, "loss-by-snr", log_snr_chart(last.losses[1:], first.losses[1:] * same)
    )


def _parts(history: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    chart, legend = parts_chart(history)
    if chart:
        yield _framed("Where a step's time goes", "rank 0, mean of neighbouring steps", "parts", chart + legend)


def _framed(title: str, note: str, style: str, content: str) -> str:
    return (
        f'<figure class="chart {style}"><figcaption><b>{escape(title)}</b> <span>{escape(note)}</span></figcaption>'
        f"{content}</figure>"
    )


def _rate(images: int, seconds: float) -> float:
    return images / seconds if seconds > 0 else math.nan


def _chart(curve: Curve, places: Sequence[float], values: Sequence[float]) -> str:
    lost = int(np.count_nonzero(~np.isfinite(values)))
    warning = f' <strong class="lost">{lost} not finite, marked on the axis</strong>' if lost else ""
    return (
        f'<figure class="chart {curve.style}"><figcaption><b>{escape(curve.title)}</b> '
        f"<span>{escape(curve.note)}</span>{warning}</figcaption>{draw(curve, places, values)}</figure>"
    )


def _figure(caption: str, image: bytes) -> str:
    media_type = next((name for start, name in IMAGE_SIGNATURES.items() if image.startswith(start)), None)
    if media_type is None:
        raise ValueError(f"image {caption!r} is neither PNG nor JPEG (it starts with {image[:8]!r})")
    text = escape(caption, quote=True)
    source = f"data:{media_type};base64,{base64.b64encode(image).decode()}"
    return f'<figure class="picture"><img alt="{text}" src="{source}"><figcaption>{text}</figcaption></figure>'


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary><pre>{escape(text)}</pre></details>"
