"""Renders the sections of a run's page from what its files say. All text from files is escaped here."""

import time
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from launcher.contract.run_dir import RunDir
from launcher.live.charts import Bar, error_chart, line_chart, short, stacked_bar
from launcher.live.curves import Reading, Validation
from launcher.live.files import last_lines, newest_picture
from launcher.live.ranks import ranks_html
from launcher.live.words import STATES, advice, clock, duration, seconds_left, size, step_seconds
from launcher.records.attempt_record import LostTime
from launcher.records.run_facts import RunFacts, newest_time

LOG_LINES = 20
_SHOWN_ATTEMPTS = 20


def run_sections(facts: RunFacts, reading: Reading) -> dict[str, str]:
    """Return the HTML of each section by its id, in the order of the page."""
    return {
        "state": state_html(facts),
        "progress": progress_html(facts),
        "figures": figures_html(facts, reading),
        "curves": curves_html(reading),
        "attempts": attempts_html(facts),
        "ranks": ranks_html(facts),
        "preview": preview_html(facts.run),
        "log": log_html(facts),
        "links": links_html(facts),
    }


def state_html(facts: RunFacts) -> str:
    lines = "".join(f"<p>{escape(line)}</p>" for line in advice(facts))
    return (
        f'<div class="state {facts.state}"><h2 class="sr">State</h2>'
        f'<p role="status"><strong>{STATES[facts.state]}</strong></p><div>{lines}</div></div>'
    )


def progress_html(facts: RunFacts) -> str:
    total = facts.total_steps
    heading = "<h2>Progress</h2>"
    if not total:
        return f'{heading}<p class="none">the number of steps is not known yet</p>'
    left_s = seconds_left(facts)
    ends = ""
    if left_s is not None:
        then = facts.now_unix_s + left_s
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(then))
        ends = (
            f"<span>about <b>{duration(left_s)}</b> left</span>"
            f'<span>ends about <b><time datetime="{stamp}">{clock(then, facts.now_unix_s)}</time></b></span>'
        )
    elif facts.attempt_runs:
        ends = "<span>time left: not known before a few steps are made</span>"
    return (
        f'{heading}<progress max="{total}" value="{min(facts.step, total)}" aria-label="Steps made"></progress>'
        f'<p class="ends"><span><b>{100 * facts.step / total:.1f} %</b></span>'
        f"<span>step <b>{facts.step:,}</b> of {total:,}</span>{ends}</p>"
    )


def figures_html(facts: RunFacts, reading: Reading) -> str:
    lead, record = facts.lead, facts.record
    rates = [each.images_per_second for each in facts.alive() if each.images_per_second is not None]
    step_s, saved = step_seconds(facts), max((each.checkpoint_step for each in facts.records), default=0)
    saved_unix_s = newest_time([facts.run.manifest(saved)]) if saved else None
    age = "" if saved_unix_s is None else f"saved {duration(max(0.0, facts.now_unix_s - saved_unix_s))} ago"
    bytes_saved = size_bytes(facts.run.manifest(saved).parent, saved_unix_s) if saved_unix_s else 0
    age += f", {size(bytes_saved)}" if bytes_saved else ""
    world = len(facts.plan.ranks) if record is None else record.world_size
    free = "–" if facts.free_bytes is None else size(facts.free_bytes)
    norm = next((y for _, y in reversed(reading.curves.grad_norm) if y is not None), None)
    cells = [
        ("Loss now", "–" if lead is None or lead.loss is None else short(lead.loss), "mean of the last step"),
        ("Images per second", short(sum(rates)) if rates else "–", "all ranks together"),
        ("Step", "–" if step_s is None else f"{short(step_s)} s", "mean of this attempt, with pauses"),
        ("Newest checkpoint", f"step {saved:,}" if saved else "none yet", age),
        ("Ranks alive", f"{len(facts.alive())} of {world}", f"attempt {facts.last_attempt}"),
        ("Gradient norm", "–" if norm is None else short(norm), "before clipping"),
        ("Disk free", free, "where the run directory lies"),
    ]
    items = "".join(f"<div><dt>{name}</dt><dd>{value}<small>{note}</small></dd></div>" for name, value, note in cells)
    return f'<h2 class="sr">Figures</h2><dl>{items}</dl>'


@lru_cache(64)
def size_bytes(folder: Path, saved_unix_s: float) -> int:
    """Return the size of a checkpoint that was saved at this time. 0: its files cannot be read."""
    try:
        return sum(path.lstat().st_size for path in folder.rglob("*"))
    except OSError:
        return 0


def curves_html(reading: Reading) -> str:
    curves = reading.curves
    held_out = of_one_kind(curves.validation)
    bins = held_out[-1].bins if held_out else ()
    bars = [Bar(each.log_snr, each.loss, each.standard_error or 0.0) for each in bins if each.loss is not None]
    kind = f" ({held_out[-1].weights})" if held_out else ""
    charts = [
        line_chart("Training loss", curves.loss, log=True, smooth=True),
        line_chart(f"Held-out loss{kind}", [(each.samples, each.loss) for each in held_out], log=True, style="amber"),
        error_chart("Held-out loss by log SNR", bars, "log SNR, from little noise to much"),
        line_chart("Images per second", curves.images_per_second, smooth=True, style="teal"),
    ]
    fault = f'<p class="stale">{escape(reading.fault)}</p>' if reading.fault else ""
    return f'<h2>Curves</h2>{fault}<div class="charts">{"".join(charts)}</div>{_parts_html(curves.parts)}'


def of_one_kind(validations: Sequence[Validation]) -> list[Validation]:
    """Return the validations of the averaged weights, which are sampled from; of the raw ones where there are none."""
    kinds = [each.weights for each in validations if each.weights != "raw"] or ["raw"]
    return [each for each in validations if each.weights == kinds[-1]]


def _parts_html(parts: dict[str, float]) -> str:
    """Render where the wall clock goes, as a bar and in words."""
    shown = sorted(((name, value) for name, value in parts.items() if value > 0), key=lambda part: -part[1])[:10]
    total = sum(value for _, value in shown)
    if not total:
        return ""
    words = [f"{name.replace('_', ' ')} {100 * value / total:.0f} %" for name, value in shown]
    bar = stacked_bar(list(zip(words, (value for _, value in shown), strict=True)), total, ", ".join(words))
    return f"<h3>Where the time of a step goes</h3>{bar}{_legend(words)}"


def _legend(words: Sequence[str]) -> str:
    items = "".join(f'<li><i class="part-{number}"></i>{escape(word)}</li>' for number, word in enumerate(words))
    return f'<ul class="legend">{items}</ul>'


def attempts_html(facts: RunFacts) -> str:
    heading = "<h2>Attempts and lost time</h2>"
    if not facts.records:
        return f'{heading}<p class="none">no attempt has begun</p>'
    causes = {
        cause.removesuffix("_s"): sum(getattr(record.lost, cause) for record in facts.records)
        for cause in LostTime.model_fields
    }
    lost_s, trained_s = sum(causes.values()), sum(record.trained_s for record in facts.records)
    parts = [("trained", trained_s), *causes.items()]
    bar = ""
    if lost_s + trained_s > 0:
        words = [f"{name} {duration(value)}" for name, value in parts]
        spoken = ", ".join(words)
        bar = stacked_bar(list(zip(words, (value for _, value in parts), strict=True)), lost_s + trained_s, spoken)
        bar += _legend(words)
    rows = []
    for record in facts.records[-_SHOWN_ATTEMPTS:][::-1]:
        runs = facts.attempt_runs and record is facts.record
        end = record.ended_unix_s or facts.now_unix_s
        took = duration(max(0.0, end - record.started_unix_s)) if runs or record.ended_unix_s else "not known"
        code = "runs" if runs else "no verdict" if record.exit_code is None else str(record.exit_code)
        cells = [
            f'<th scope="row">{record.attempt}</th>',
            f'<td class="time">{clock(record.started_unix_s, facts.now_unix_s)}</td>',
            f'<td class="time">{took}</td><td>{code}</td>',
            f'<td class="minor">{record.resumed_step:,} to {max(record.last_step, record.resumed_step):,}</td>',
            f'<td class="minor">{duration(sum(record.lost.model_dump().values()))}</td>',
            f'<td class="long">{escape(record.text)}</td>',
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    older = max(0, len(facts.records) - _SHOWN_ATTEMPTS)
    more = f'<p class="soft">{older} older ones are in attempts/</p>' if older else ""
    return (
        f'{heading}<p class="soft">{duration(lost_s)} lost in {len(facts.records)} attempt(s), by cause</p>{bar}'
        '<div class="scroll" tabindex="0" id="attempts-scroll" role="region" aria-label="Attempts"><table>'
        "<caption>Attempts, newest first</caption><thead><tr>"
        '<th scope="col">attempt</th><th scope="col">began</th><th scope="col">took</th>'
        '<th scope="col">exit code</th><th scope="col" class="minor">steps</th>'
        '<th scope="col" class="minor">lost before it</th><th scope="col">how it ended</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{more}"
    )


def preview_html(run: RunDir) -> str:
    path = newest_picture(run)
    if path is None:
        return '<h2>Newest pictures</h2><p class="none">none yet</p>'
    name, stamp = escape(path.name, quote=True), newest_time([path]) or 0.0
    # The time in the address has the browser load a newer picture.
    return (
        f'<h2>Newest pictures</h2><figure><img src="preview?{stamp:.0f}" alt="Grid of samples {name}">'
        f"<figcaption><span>{name}</span></figcaption></figure>"
    )


def log_html(facts: RunFacts) -> str:
    lines = last_lines(facts.run, facts.run.attempt(facts.last_attempt).log(0), LOG_LINES) if facts.last_attempt else []
    heading = f"<h2>Last {LOG_LINES} log lines of rank 0</h2>"
    if not lines:
        return f'{heading}<p class="none">nothing yet</p>'
    text = escape("\n".join(lines))
    return f'{heading}<pre tabindex="0" id="log-text" aria-label="Log of rank 0">{text}</pre>'


def links_html(facts: RunFacts) -> str:
    links = [("log", "the last 200 log lines of rank 0"), ("state.json", "all of this as JSON")]
    if facts.run.report_html.exists():
        links.insert(0, ("report.html", "the report with all curves and pictures"))
    links += [("/metrics", "metrics of all runs"), ("/", "all runs")]
    if facts.plan.grafana_url is not None:
        dashboard = f"{facts.plan.grafana_url.rstrip('/')}/d/vpred-run?var-run={quote(facts.name, safe='')}"
        links.append((dashboard, "the run's dashboard in Grafana"))
    items = "".join(f'<li><a href="{escape(place, quote=True)}">{text}</a></li>' for place, text in links)
    return f"<h2>More</h2><ul>{items}</ul>"
