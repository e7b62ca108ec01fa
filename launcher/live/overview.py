"""Renders the table of all runs."""

from collections.abc import Sequence
from html import escape
from urllib.parse import quote

from launcher.live.charts import short
from launcher.live.runs import SeenRun
from launcher.live.words import STATES, clock, duration, seconds_left

_COLUMNS = ("run", "state", "progress", "left", "loss", "images/s", "ranks", "attempt", "began")
_MINOR = {"loss", "images/s", "ranks", "attempt", "began"}


def run_path(name: str) -> str:
    """Return the path of a run's page."""
    return f"/runs/{quote(name, safe='')}/"


def overview_html(runs: Sequence[SeenRun], now_unix_s: float) -> str:
    """Render all runs, those first whose newest attempt began last."""
    newest_first = sorted(runs, key=lambda seen: (-_newest(seen), seen.name))
    rows = "".join(_row(seen, now_unix_s) for seen in newest_first)
    heads = "".join(f'<th scope="col"{_minor(name)}>{name}</th>' for name in _COLUMNS)
    return (
        '<h2 class="sr">Runs</h2>'
        '<div class="scroll" tabindex="0" id="runs-scroll" role="region" aria-label="Runs"><table>'
        f"<caption>{len(runs)} run(s), newest first</caption><thead><tr>{heads}</tr></thead>"
        f"<tbody>{rows}</tbody></table></div>"
    )


def _newest(seen: SeenRun) -> float:
    facts = seen.facts
    if facts is None:
        return 0.0
    return facts.record.started_unix_s if facts.record else facts.heartbeat_unix_s or 0.0


def _row(seen: SeenRun, now_unix_s: float) -> str:
    head = f'<th scope="row"><a href="{run_path(seen.name)}">{escape(seen.name)}</a></th>'
    facts = seen.facts
    if facts is None:
        rest = f'<td class="failed"><span class="word">Unreadable</span></td><td colspan="7">{escape(seen.fault)}</td>'
        return f"<tr>{head}{rest}</tr>"
    total, left_s, lead, record = facts.total_steps, seconds_left(facts), facts.lead, facts.record
    rates = [each.images_per_second for each in facts.alive() if each.images_per_second is not None]
    cells = {
        "state": f'<span class="word">{STATES[facts.state]}</span>',
        "progress": f"{100 * facts.step / total:.0f} % of {total:,}" if total else "–",
        "left": "–" if left_s is None else duration(left_s),
        "loss": "–" if lead is None or lead.loss is None else short(lead.loss),
        "images/s": short(sum(rates)) if rates and facts.lives else "–",
        "ranks": f"{len(facts.alive())} of {len(facts.plan.ranks) if record is None else record.world_size}",
        "attempt": str(facts.last_attempt),
        "began": "–" if record is None else clock(record.started_unix_s, now_unix_s),
    }
    shown = "".join(
        f"<td{_minor(name)}>{cell}</td>" if name != "state" else f'<td class="{facts.state}">{cell}</td>'
        for name, cell in cells.items()
    )
    return f"<tr>{head}{shown}</tr>"


def _minor(name: str) -> str:
    return ' class="minor"' if name in _MINOR else ""
