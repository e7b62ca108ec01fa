"""Dashboards as committed, and the rules that each of them follows: those of Grafana's dashboard-linter, and ours."""

import json
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from monitoring.dashboards.builder import Dashboard
from monitoring.dashboards.grafana import COLUMNS, SOURCE, UNITS
from support import CHECKOUT
from support.prometheus import Prometheus

FOLDER = CHECKOUT / "monitoring" / "stack" / "grafana" / "dashboards"
# Windows that are not the interval between two points of a curve, and why.
FIXED_WINDOWS = {
    "$__range": "the panel sums over the time range shown",
    "24h": "the panel's title says so",
    "1d": "the table's column says so",
    "15m:1m": "npu-exporter reads most values once a minute",
    "24h:1m": "npu-exporter reads most values once a minute, and the panel's title says 24 h",
}
# (dashboard, panel) -> why its queries are not of one run.
ALL_RUNS = {
    ("vpred-overview", "Firing alerts"): "alerts of NPUs and hosts have no run",
}
_SELECTOR = re.compile(r"\b((?:run(?:_\w+)?:)?(?:vpred|npu|node)_\w+(?::\w+)?|up|ALERTS|scrape_\w+)(\{[^}]*\})?")
_WINDOW = re.compile(r"\b(rate|irate|increase)\(.*?\[([^\]]+)\]")
_GRAFANA = {"$__rate_interval": "1m", "$__range": "15m"}


def committed() -> dict[str, dict[str, Any]]:
    """File name -> dashboard."""
    return {path.name: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def filled_in(expr: str, run: str, hostname: str = ".*", **windows: str) -> str:
    """A query as Grafana sends it to Prometheus."""
    values = {**_GRAFANA, **{f"$__{name}": value for name, value in windows.items()}, "$run": run}
    for name, value in {**values, "$hostname": hostname}.items():
        expr = expr.replace(name, value)
    return expr


def metrics_of(expr: str) -> set[str]:
    return {match[1] for match in _SELECTOR.finditer(expr)}


def label_matchers(expr: str) -> list[tuple[str, str]]:
    """(metric, label) of each matcher of an expression."""
    return [
        (match[1], label)
        for match in _SELECTOR.finditer(expr)
        for label in re.findall(r"(\w+)[=!]~?\"", match[2] or "")
    ]


def faults(dashboard: dict[str, Any]) -> list[str]:
    """Every break of a rule, one line each."""
    return [
        *_of_the_whole(dashboard),
        *(f for panel in panels(dashboard) for f in _of_a_panel(dashboard["uid"], panel)),
    ]


def _of_the_whole(dashboard: dict[str, Any]) -> Iterator[str]:
    if dashboard["editable"]:
        yield "it can be edited"
    if "__inputs" in dashboard:
        yield "it has __inputs"
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    if variables.get("datasource", {}).get("type") != "datasource":
        yield "no variable chooses the data source"
    if "run" not in variables:
        yield "no variable chooses the run"
    sourced = [*dashboard["annotations"]["list"], *(each for each in variables.values() if each["type"] == "query")]
    yield from (f"{each['name']}: another data source" for each in sourced if each["datasource"] != SOURCE)
    if {each["name"] for each in dashboard["annotations"]["list"]} != {"Attempts", "Alerts"}:
        yield "no annotations of attempts and alerts"
    if not all(link["keepTime"] and link["includeVars"] for link in dashboard["links"]) or not dashboard["links"]:
        yield "no link keeps time and variables"
    ids = [panel["id"] for panel in dashboard["panels"]]
    if len(set(ids)) != len(ids):
        yield "two panels have one id"
    titles = [panel["title"] for panel in dashboard["panels"]]
    yield from (f"{title}: two panels have this title" for title in set(titles) if titles.count(title) > 1)
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        if cells & taken or max(x for x, _ in cells) >= COLUMNS:
            yield f"{panel['title']}: overlaps a panel or the edge"
        taken |= cells


def _of_a_panel(uid: str, panel: dict[str, Any]) -> Iterator[str]:
    title = panel["title"] or f"panel {panel['id']}"
    if not panel["title"] or not panel.get("description", "").endswith("."):
        yield f"{title}: no title or no description"
    if panel["datasource"] != SOURCE or any(target["datasource"] != SOURCE for target in panel["targets"]):
        yield f"{title}: another data source"
    if panel["type"] == "text":
        return
    if panel["fieldConfig"]["defaults"].get("unit") not in UNITS.values():
        yield f"{title}: no unit of the table"
    for override in panel["fieldConfig"]["overrides"]:
        units = [each["value"] for each in override["properties"] if each["id"] == "unit"]
        yield from (f"{title}: unit {unit} is not in the table" for unit in units if unit not in UNITS.values())
    refs = [target["refId"] for target in panel["targets"]]
    if not refs or len(set(refs)) != len(refs):
        yield f"{title}: no queries, or two with one refId"
    for target in panel["targets"]:
        yield from (f"{title}: {fault}" for fault in _of_a_query(target["expr"], (uid, title) in ALL_RUNS))
        if panel["type"] in ("timeseries", "bargauge") and target["legendFormat"] == "__auto":
            yield f"{title}: no legend"


def _of_a_query(expr: str, of_all_runs: bool) -> Iterator[str]:
    for function, window in _WINDOW.findall(expr):
        if window != "$__rate_interval" and (function != "increase" or window not in FIXED_WINDOWS):
            yield f"{function} over {window}"
    inside = re.sub(r"\b(?:rate|irate|increase)\([^()]*(?:\([^()]*\))?[^()]*\)", "", expr)
    yield from (f"{name} outside of a rate" for name in metrics_of(inside) if name.endswith("_total"))
    for match in _SELECTOR.finditer(expr):
        name, matchers = match[1], match[2] or ""
        wanted = "$hostname" if name.startswith(("npu_", "node_")) else "$run"
        if wanted not in matchers and not of_all_runs:
            yield f"{name} without {wanted}"


@dataclass(frozen=True)
class Answer:
    """What Prometheus answered a query of a dashboard. `place` names dashboard, panel and query."""

    place: str
    kind: str
    may_be_empty: str
    series: int
    seconds: float


def answers(server: Prometheus, dashboard: Dashboard, run: str, *, span_s: float) -> Iterator[Answer]:
    """Ask what Grafana would ask for a run: panels, variables and annotations.

    span_s: seconds of the time range that ends now
    """
    now = time.time()
    over_time: dict[str, Any] = {"start": now - span_s, "end": now, "step": 5}
    asked = [
        (panel.title, panel.kind, query.expr, query.may_be_empty, {} if query.instant else over_time)
        for panel in dashboard.panels
        for query in panel.queries
    ]
    document = dashboard.json()
    for each in document["templating"]["list"]:
        if each["type"] == "query":
            metric = re.fullmatch(r"label_values\((.*), \w+\)", each["query"]["query"])
            assert metric is not None
            asked.append((f"variable {each['name']}", "variable", metric[1], "", {}))
    for each in document["annotations"]["list"]:
        reason = "no alert of this run fired" if each["name"] == "Alerts" else ""
        asked.append((f"annotation {each['name']}", "annotation", each["target"]["expr"], reason, over_time))
    for title, kind, expr, reason, parameters in asked:
        text = filled_in(" ".join(expr.split()), run, rate_interval="15s", range=f"{span_s:.0f}s")
        began = time.monotonic()
        series = server.query(text, **parameters)
        yield Answer(f"{dashboard.uid} / {title}: {text}", kind, reason, len(series), time.monotonic() - began)
