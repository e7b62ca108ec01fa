"""Answers the fixed list of paths that the server has. A path is never the name of a file."""

import json
import math
import threading
import time
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from urllib.parse import unquote

from launcher.commands.status import state_of
from launcher.live.curves import CurveReader
from launcher.live.files import last_lines, picture, read_inside
from launcher.live.html import FAVICON, page
from launcher.live.overview import overview_html, run_path
from launcher.live.runs import Runs, SeenRun, is_run
from launcher.live.sections import run_sections
from launcher.live.targets import node_groups, npu_groups, rank_groups
from launcher.records.launcher_metrics import render_launcher_metrics
from launcher.records.run_facts import RunFacts
from launcher.records.targets import render

_LOG_LINES = 200
_HTML, _JSON, _TEXT = "text/html; charset=utf-8", "application/json", "text/plain; charset=utf-8"
_METRICS = "text/plain; version=0.0.4; charset=utf-8"
# The report is a file of the run: whatever stands in it, it may do nothing but show itself.
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_NO_PAGE = "default-src 'none'; sandbox"


@dataclass(frozen=True)
class Answer:
    """Is an answer to GET.

    policy: its Content-Security-Policy
    location: where the client finds the page, for status 302
    """

    body: bytes
    kind: str = _TEXT
    status: int = 200
    policy: str = _NO_PAGE
    location: str = ""


NOT_FOUND = Answer(b"not found\n", status=404)


@dataclass
class _Rendered:
    """Holds the sections of a run's page as long as its facts stay the same."""

    curves: CurveReader
    lock: threading.Lock = field(default_factory=threading.Lock)
    facts: RunFacts | None = None
    sections: dict[str, str] = field(default_factory=dict)
    state: bytes = b""


class Answers:
    """Answers for the runs below a folder."""

    def __init__(self, folder: Path) -> None:
        self._runs = Runs(folder)
        self._is_run = is_run(folder)
        self._title = folder.name or str(folder)
        self._rendered: dict[Path, _Rendered] = {}

    def get(self, path: str) -> Answer:
        """Answer a request for `path`, which is still quoted and has no query."""
        words = [unquote(word, errors="replace") for word in path.split("/")]
        match words:
            case ["", ""]:
                alone = self._runs.seen()[:1] if self._is_run else ()
                return Answer(b"", status=302, location=run_path(alone[0].name)) if alone else self._overview()
            case ["", "state.json"]:
                return _json({"title": self._overview_title(), "sections": self._overview_sections()})
            case ["", "healthz"]:
                return Answer(b"ok\n")
            case ["", "favicon.svg"]:
                return Answer(FAVICON.encode(), "image/svg+xml")
            case ["", "metrics"]:
                return Answer(render_launcher_metrics(self._facts()), _METRICS)
            case ["", "sd"]:
                return Answer(render(rank_groups(self._facts())).encode(), _JSON)
            case ["", "sd", "node"]:
                return Answer(render(node_groups(self._facts())).encode(), _JSON)
            case ["", "sd", "npu"]:
                return Answer(render(npu_groups(self._facts())).encode(), _JSON)
            case ["", "runs", name, *places] if (seen := self._find(name)) is not None:
                if not places:
                    return Answer(b"", status=302, location=run_path(name))
                return self._of_run(seen, places[0]) if len(places) == 1 else NOT_FOUND
        return NOT_FOUND

    def _find(self, name: str) -> SeenRun | None:
        return next((seen for seen in self._runs.seen() if seen.name == name), None)

    def _facts(self) -> list[RunFacts]:
        return [seen.facts for seen in self._runs.seen() if seen.facts is not None]

    def _overview(self) -> Answer:
        header = f"<h1>Runs in {escape(self._title)}</h1>"
        html, policy = page(self._overview_title(), header, self._overview_sections(), "vpred-launch serve")
        return Answer(html.encode(errors="replace"), _HTML, policy=policy)

    def _overview_title(self) -> str:
        running = sum(facts.lives for facts in self._facts())
        return f"{running} running – {self._title}"

    def _overview_sections(self) -> dict[str, str]:
        return {"runs": overview_html(self._runs.seen(), time.time())}

    def _of_run(self, seen: SeenRun, place: str) -> Answer:
        match place:
            case "":
                return self._page(seen)
            case "state.json":
                return self._state(seen)
            case "report.html":
                report = read_inside(seen.run, seen.run.report_html)
                return NOT_FOUND if report is None else Answer(report, _HTML, policy=_REPORT_POLICY)
            case "preview":
                found = picture(seen.run)
                return NOT_FOUND if found is None else Answer(*found)
            case "log":
                attempt = seen.run.attempt(seen.facts.last_attempt if seen.facts else 0)
                return Answer("\n".join([*last_lines(seen.run, attempt.log(0), _LOG_LINES), ""]).encode())
        return NOT_FOUND

    def _page(self, seen: SeenRun) -> Answer:
        header = f'<nav aria-label="Runs"><a href="/">All runs</a></nav><h1>{escape(seen.name)}</h1>'
        footer = f"{escape(str(seen.run.root))}"
        html, policy = page(_title(seen), header, self._render(seen).sections, footer)
        return Answer(html.encode(errors="replace"), _HTML, policy=policy)

    def _state(self, seen: SeenRun) -> Answer:
        return Answer(self._render(seen).state, _JSON)

    def _render(self, seen: SeenRun) -> _Rendered:
        """Render the run's page once for all that ask for it between two passes over its files."""
        rendered = self._rendered.setdefault(seen.run.root, _Rendered(CurveReader(seen.run)))
        with rendered.lock:
            self._renew(rendered, seen)
        return rendered

    def _renew(self, rendered: _Rendered, seen: SeenRun) -> None:
        facts = seen.facts
        if facts is None:
            rendered.sections = {"state": f'<h2>Unreadable</h2><p class="stale">{escape(seen.fault)}</p>'}
            rendered.state = _json({"title": _title(seen), "fault": seen.fault, "sections": rendered.sections}).body
        elif facts is not rendered.facts:
            reading = rendered.curves.read()
            sections = run_sections(facts, reading)
            rest = {"title": _title(seen), "sections": sections, "curves": reading.curves.model_dump(mode="json")}
            rendered.state = _json({**state_of(facts).model_dump(mode="json"), **rest}).body
            rendered.facts, rendered.sections = facts, sections


def _title(seen: SeenRun) -> str:
    facts = seen.facts
    if facts is None:
        return f"unreadable – {seen.name}"
    share = f" {100 * facts.step / facts.total_steps:.0f} %" if facts.total_steps else ""
    return f"{facts.state}{share} – {seen.name}"


def _json(document: object) -> Answer:
    return Answer(json.dumps(_finite(document), allow_nan=False).encode(), _JSON)


def _finite(document: object) -> object:
    """Replace numbers that JSON cannot hold by null. A loss may be NaN."""
    if isinstance(document, dict):
        return {name: _finite(value) for name, value in document.items()}
    if isinstance(document, list | tuple):
        return [_finite(value) for value in document]
    return None if isinstance(document, float) and not math.isfinite(document) else document
