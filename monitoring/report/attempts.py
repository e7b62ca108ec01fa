"""Renders a report's table of attempts: how each ended, and the time that it lost by cause."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from typing import Any

from monitoring.records import number

# Keys of an attempt's lost time, and their words.
CAUSES = {
    "detection_s": "detection",
    "delay_s": "delay",
    "rollback_s": "rollback",
    "start_s": "start",
    "load_s": "load",
    "compile_s": "compile",
}


def attempts_table(attempts: Sequence[Mapping[str, Any]]) -> str:
    """Render the records of attempts, which may be of any version, as HTML."""
    headings = ["attempt", "began (UTC)", "took", "steps", "how it ended", *(f"{word}, s" for word in CAUSES.values())]
    head = "".join(f'<th scope="col">{escape(word)}</th>' for word in headings)
    lost = [_lost(attempt) for attempt in attempts]
    rows = "".join(_row(attempt, seconds) for attempt, seconds in zip(attempts, lost, strict=True))
    by_cause = [f"{word} {sum(each[key] for each in lost):.1f} s" for key, word in CAUSES.items()]
    total = sum(sum(each.values()) for each in lost)
    return (
        f'<p class="none">{total:.1f} s lost in {len(attempts)} attempt(s): {", ".join(by_cause)}</p>'
        '<div class="scroll" tabindex="0" role="region" aria-label="Attempts"><table class="attempts">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _row(attempt: Mapping[str, Any], lost: Mapping[str, float]) -> str:
    began, ended = number(attempt, "started_unix_s"), number(attempt, "ended_unix_s")
    took = ended - began
    code = attempt.get("exit_code")
    steps = f"{number(attempt, 'resumed_step'):,.0f} to {number(attempt, 'last_step'):,.0f}"
    verdict = "no verdict yet" if code is None else f"exit code {code}"
    text = f"{verdict}: {attempt['text']}" if attempt.get("text") else verdict
    cells = [_clock(began), f"{took:,.0f} s" if took >= 0 else "", steps if "nan" not in steps else "", text]
    cells += [f"{seconds:.1f}" for seconds in lost.values()]
    return f'<tr><th scope="row">{attempt["attempt"]}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in cells)}</tr>'


def _lost(attempt: Mapping[str, Any]) -> dict[str, float]:
    lost = attempt.get("lost")
    seconds = {key: number(lost, key) if isinstance(lost, Mapping) else 0.0 for key in CAUSES}
    return {key: value if 0 <= value < 1e12 else 0.0 for key, value in seconds.items()}


def _clock(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S}" if 0 < unix_s < 1e11 else ""
