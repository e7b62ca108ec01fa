"""Builds dashboards as Grafana reads them: classic JSON, schema version 39, which Grafana 10 to 13 import.

Source: `Dashboard` of @grafana/schema. A dashboard has no `__inputs`: a provisioned Grafana cannot fill them in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from monitoring.dashboards.grafana import (
    ANNOTATIONS,
    COLUMNS,
    LINES,
    LINK,
    OPTIONS,
    SOURCE,
    SOURCE_VARIABLE,
    UNITS,
    Json,
)


@dataclass(frozen=True)
class Query:
    """Describes one query of a panel.

    expr: PromQL; spaces and line breaks are joined
    legend: template of a series' name
    instant: asks for the newest value alone
    may_be_empty: the reason why no answer is no fault, "" when there is none
    """

    expr: str
    legend: str = ""
    instant: bool = False
    may_be_empty: str = ""


@dataclass(frozen=True)
class Panel:
    """Describes one panel.

    unit: a key of UNITS; None for texts
    width, height: in cells of Grafana's grid
    limits: least and greatest value of the axis
    colors: ascending (value, color); the first value is None
    options, custom: replace those of the kind
    further: keys of the panel itself
    """

    kind: str
    title: str
    description: str
    unit: str | None
    queries: Sequence[Query]
    width: int = 12
    height: int = 8
    decimals: int | None = None
    limits: tuple[float, float] | None = None
    colors: Sequence[tuple[float | None, str]] = ()
    mappings: Sequence[Json] = ()
    overrides: Sequence[Json] = ()
    options: Json = field(default_factory=dict)
    custom: Json = field(default_factory=dict)
    further: Json = field(default_factory=dict)

    def json(self) -> Json:
        """Return the panel without its place and its number."""
        is_table = self.kind == "table"
        return {
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": SOURCE,
            "fieldConfig": {"defaults": self._defaults(), "overrides": list(self.overrides)},
            "options": {**OPTIONS[self.kind], **self.options},
            "targets": [_target(query, chr(ord("A") + at), is_table) for at, query in enumerate(self.queries)],
            **self.further,
        }

    def _defaults(self) -> Json:
        found: Json = {}
        if self.unit is not None:
            found["unit"] = UNITS[self.unit]
        if self.decimals is not None:
            found["decimals"] = self.decimals
        if self.limits is not None:
            found["min"], found["max"] = self.limits
        if self.colors:
            steps = [{"value": value, "color": color} for value, color in self.colors]
            found["thresholds"] = {"mode": "absolute", "steps": steps}
        if self.mappings:
            found["mappings"] = list(self.mappings)
        custom = {**(LINES if self.kind == "timeseries" else {}), **self.custom}
        if custom:
            found["custom"] = custom
        return found


@dataclass(frozen=True)
class Row:
    """Describes a heading that spans all columns."""

    title: str

    def json(self) -> Json:
        """Return the row without its place and its number."""
        return {"type": "row", "title": self.title, "collapsed": False, "panels": []}


@dataclass(frozen=True)
class Dashboard:
    """Describes a dashboard. `uid` is the stable part of its address.

    variables: those after the data source
    """

    uid: str
    title: str
    description: str
    variables: Sequence[Json]
    items: Sequence[Panel | Row]

    @property
    def panels(self) -> list[Panel]:
        """Return the panels without the rows."""
        return [item for item in self.items if isinstance(item, Panel)]

    def json(self) -> Json:
        """Return the dashboard as Grafana imports it."""
        return {
            "uid": self.uid,
            "title": f"vpred / {self.title}",
            "description": self.description,
            "tags": ["vpred"],
            "schemaVersion": 39,
            "version": 1,
            "editable": False,
            "graphTooltip": 1,
            "refresh": "30s",
            "timezone": "browser",
            "time": {"from": "now-6h", "to": "now"},
            "templating": {"list": [SOURCE_VARIABLE, *self.variables]},
            "annotations": {"list": ANNOTATIONS},
            "links": [LINK],
            "panels": _placed(self.items),
        }


def stat(title: str, description: str, unit: str, expr: str, width: int = 4, **more: Any) -> Panel:
    """Return a panel that shows one newest number. It is green unless `colors` has others."""
    query = Query(expr, instant=True, may_be_empty=more.pop("may_be_empty", ""))
    more.setdefault("colors", [(None, "green")])
    return Panel("stat", title, description, unit, [query], width, 4, **more)


def lines(title: str, description: str, unit: str, *queries: Query, width: int = 12, **more: Any) -> Panel:
    """Return a panel of curves over time."""
    return Panel("timeseries", title, description, unit, queries, width, **more)


def override(name: str, **properties: Any) -> Json:
    """Return an override of the field called `name`. `__` in a property's name stands for a dot."""
    values = [{"id": key.replace("__", "."), "value": value} for key, value in properties.items()]
    return {"matcher": {"id": "byName", "options": name}, "properties": values}


def columns(names: Mapping[str, str], hidden: Sequence[str] = ()) -> list[Json]:
    """Return the transformations that make one table of a panel's queries. `names` renames and orders its columns."""
    organize = {
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "indexByName": {name: place for place, name in enumerate(names)},
        "renameByName": dict(names),
    }
    return [{"id": "merge", "options": {}}, {"id": "organize", "options": organize}]


def _target(query: Query, ref: str, is_table: bool) -> Json:
    found: Json = {"refId": ref, "datasource": SOURCE, "expr": " ".join(query.expr.split())}
    found["legendFormat"] = query.legend or "__auto"
    if query.instant:
        found |= {"instant": True, "range": False}
    return {**found, "format": "table"} if is_table else found


def _placed(items: Sequence[Panel | Row]) -> list[Json]:
    """Number the items, and place them from left to right and from top to bottom."""
    found: list[Json] = []
    x = y = height = 0  # of the line of panels that is being filled
    for number, item in enumerate(items, 1):
        size = (COLUMNS, 1) if isinstance(item, Row) else (item.width, item.height)
        if x + size[0] > COLUMNS:
            x, y, height = 0, y + height, 0
        found.append({"id": number, **item.json(), "gridPos": {"x": x, "y": y, "w": size[0], "h": size[1]}})
        x, height = x + size[0], max(height, size[1])
    return found


def worst(expr: str, *, least: bool = False) -> str:
    """Return a query for the ten greatest series of `expr` in the newest 15 minutes of the range, or the ten least.

    `topk` alone chooses again at each point of a range, and a graph of ten gets dozens of curves.
    """
    chosen = f"bottomk(10, min_over_time(({expr})[15m:1m] @ end()))"
    if not least:
        chosen = f"topk(10, max_over_time(({expr})[15m:1m] @ end()))"
    return f"({expr}) and {chosen}"
