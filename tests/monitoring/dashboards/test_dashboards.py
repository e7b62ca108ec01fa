"""The dashboards: what is committed is what the Python data makes, and each follows the rules of support.dashboards."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import promql_parser
import pytest

from monitoring.dashboards.__main__ import DASHBOARDS, main, rendered
from monitoring.dashboards.builder import Panel, worst
from support.dashboards import FOLDER, committed, faults, filled_in, metrics_of, panels

Document = dict[str, Any]


def test_the_committed_files_are_those_of_the_python_data() -> None:
    """Otherwise: .venv/bin/python -m monitoring.dashboards monitoring/stack/grafana/dashboards"""
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert found == {f"{each.uid}.json": rendered(each) for each in DASHBOARDS}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "folder")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "file/folder: cannot be written" in line


@pytest.mark.parametrize("name", committed())
def test_a_dashboard_breaks_no_rule(name: str) -> None:
    assert faults(committed()[name]) == []


def test_dashboards_have_addresses_and_titles_of_their_own() -> None:
    found = committed().values()
    for key in ("uid", "title"):
        assert len({each[key] for each in found}) == len(found) == 5


def test_every_query_is_promql() -> None:
    for dashboard in committed().values():
        annotations = [annotation["target"]["expr"] for annotation in dashboard["annotations"]["list"]]
        queries = [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]
        for expr in (*annotations, *queries):
            promql_parser.parse(filled_in(expr, "a"))


def test_the_parser_refuses_what_is_no_promql() -> None:
    with pytest.raises(ValueError, match="unclosed left parenthesis"):
        promql_parser.parse("sum(rate(x[5m])")


def test_links_lead_to_dashboards_that_exist() -> None:
    text = "".join(map(rendered, DASHBOARDS))
    linked = set(re.findall(r"/d/([\w-]+)", text))
    assert linked and linked <= {dashboard.uid for dashboard in DASHBOARDS}


def test_a_reason_stands_where_a_query_may_be_empty() -> None:
    reasons = {query.may_be_empty for each in DASHBOARDS for panel in each.panels for query in panel.queries}
    assert len(reasons) > 5 and all(reason == "" or len(reason.split()) > 2 for reason in reasons)


def test_worst_chooses_its_series_once() -> None:
    assert worst("x") == "(x) and topk(10, max_over_time((x)[15m:1m] @ end()))"
    assert worst("x", least=True) == "(x) and bottomk(10, min_over_time((x)[15m:1m] @ end()))"


def test_panels_fill_lines_from_left_to_right() -> None:
    (runs, *_) = DASHBOARDS
    at = [panel["gridPos"] for panel in runs.json()["panels"]]
    assert [(each["x"], each["y"]) for each in at[:8]] == [*((x, 0) for x in range(0, 24, 4)), (0, 4), (0, 13)]


def _set(*path: str | int, to: Any) -> Callable[[Document], None]:
    def change(document: Document) -> None:
        found: Any = document
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = to

    return change


FIRST = ("panels", 0)
QUERY = (*FIRST, "targets", 0)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_set("editable", to=True), "it can be edited"),
        (_set("__inputs", to=[]), "it has __inputs"),
        (_set("templating", "list", to=[]), "no variable chooses the data source"),
        (_set("annotations", "list", 0, "datasource", "uid", to="prometheus"), "Attempts: another data source"),
        (_set("links", 0, "keepTime", to=False), "no link keeps time and variables"),
        (_set(*FIRST, "id", to=2), "two panels have one id"),
        (_set(*FIRST, "gridPos", "w", to=5), "Left: overlaps a panel or the edge"),
        (_set(*FIRST, "description", to=""), "Progress: no title or no description"),
        (_set(*FIRST, "title", to="Left"), "Left: two panels have this title"),
        (_set(*FIRST, "datasource", to=None), "Progress: another data source"),
        (_set(*QUERY, "datasource", to={"uid": "x"}), "Progress: another data source"),
        (_set(*FIRST, "fieldConfig", "defaults", "unit", to="sec"), "Progress: no unit of the table"),
        (_set(*FIRST, "targets", to=[]), "Progress: no queries, or two with one refId"),
        (_set(*QUERY, "expr", to='rate(vpred_samples_total{run="$run"}[5m])'), "Progress: rate over 5m"),
        (_set(*QUERY, "expr", to='vpred_samples_total{run="$run"}'), "Progress: vpred_samples_total outside of a rate"),
        (_set(*QUERY, "expr", to="max(vpred_loss)"), "Progress: vpred_loss without $run"),
        (_set(*QUERY, "expr", to="node_load1"), "Progress: node_load1 without $hostname"),
        (_set(*FIRST, "type", to="timeseries"), "Progress: no legend"),
    ],
)
def test_each_rule_bites(change: Callable[[Document], None], fault: str) -> None:
    dashboard = copy.deepcopy(committed()["vpred-run.json"])
    change(dashboard)
    assert fault in faults(dashboard)


def test_names_of_metrics_are_found_in_a_query() -> None:
    expr = 'sum(rate(vpred_samples_total{a="b"}[5m])) / run:vpred_eta:seconds + up{job="vpred"} * node_load1'
    assert metrics_of(expr) == {"vpred_samples_total", "run:vpred_eta:seconds", "up", "node_load1"}


def test_a_kind_without_options_is_refused() -> None:
    with pytest.raises(KeyError):
        Panel("timeserie", "x", "x.", "number", []).json()
