"""Holds the fixed parts of a dashboard's JSON: units, options of each kind of panel, variables, annotations, links."""

from typing import Any

Json = dict[str, Any]

SOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}
INTERVAL = "$__rate_interval"
COLUMNS = 24  # of Grafana's grid

# Our name of a unit -> Grafana's id. Grafana shows an id that it does not know as plain text, so all ids are here.
UNITS = {
    "number": "none",
    "small_number": "sci",
    "share": "percentunit",
    "percent": "percent",
    "seconds": "s",
    "date": "dateTimeAsIso",
    "bytes": "decbytes",
    "bytes_per_s": "Bps",
    "watt": "watt",
    "celsius": "celsius",
    "hertz": "hertz",
}

_LEGEND = {"calcs": [], "displayMode": "list", "placement": "bottom", "showLegend": True}
_LAST = {"calcs": ["lastNotNull"], "fields": "", "values": False}
# Kind of a panel -> its options, unless the panel has others.
OPTIONS: dict[str, Json] = {
    "timeseries": {"legend": _LEGEND, "tooltip": {"mode": "multi", "sort": "desc"}},
    "stat": {
        "reduceOptions": _LAST,
        "colorMode": "value",
        "graphMode": "none",
        "textMode": "auto",
        "justifyMode": "auto",
        "orientation": "auto",
    },
    "table": {"showHeader": True, "cellHeight": "sm"},
    "heatmap": {
        "calculate": False,
        "cellGap": 1,
        "color": {
            "mode": "scheme",
            "scheme": "Turbo",
            "steps": 64,
            "exponent": 0.5,
            "fill": "dark-orange",
            "reverse": False,
            "scale": "exponential",
        },
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False},
        "yAxis": {"axisPlacement": "left"},
    },
    "state-timeline": {
        "showValue": "auto",
        "rowHeight": 0.9,
        "mergeValues": True,
        "legend": _LEGEND,
        "tooltip": {"mode": "single", "sort": "none"},
    },
    "bargauge": {
        "reduceOptions": _LAST,
        "orientation": "horizontal",
        "displayMode": "gradient",
        "valueMode": "color",
        "showUnfilled": True,
        "minVizHeight": 16,
        "maxVizHeight": 40,
        "minVizWidth": 8,
        "namePlacement": "auto",
        "sizing": "manual",
    },
    "text": {"mode": "markdown"},
}
LINES: Json = {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 0, "showPoints": "never", "spanNulls": False}
STACKED: Json = {"fillOpacity": 70, "lineWidth": 0, "stacking": {"mode": "normal", "group": "A"}}
STEPS: Json = {"lineInterpolation": "stepAfter"}


def logarithmic(base: int) -> Json:
    """Return the custom options of an axis whose values are logarithms to `base`."""
    return {"scaleDistribution": {"type": "log", "log": base}}


def variable(name: str, label: str, query: str, *, several: bool = False) -> Json:
    """Return a variable whose values Prometheus lists, again at each change of the time range.

    several: several values at once may be chosen; at first all are
    """
    found: Json = {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": query, "refId": "values"},
        "refresh": 2,
        "sort": 1,
        "multi": several,
        "includeAll": several,
        "hide": 0,
        "options": [],
        "regex": "",
        "skipUrlSync": False,
    }
    return {**found, "allValue": ".*"} if several else found


def _annotation(name: str, color: str, expr: str, title: str) -> Json:
    return {
        "name": name,
        "datasource": SOURCE,
        "enable": True,
        "hide": False,
        "iconColor": color,
        "target": {"refId": "annotation", "expr": expr, "interval": "30s"},
        "titleFormat": title,
        "textFormat": "{{run}}",
        "useValueForTime": False,
    }


_ATTEMPT = 'vpred_launcher_attempt{run=~"$run"}'
ANNOTATIONS = [
    _annotation(
        "Attempts",
        "orange",
        f"changes(max by (run) ({_ATTEMPT})[2m:30s]) > 0"
        f" or max by (run) ({_ATTEMPT}) unless max by (run) ({_ATTEMPT} offset 2m)",
        "a new attempt",
    ),
    _annotation(
        "Alerts",
        "red",
        'max by (alertname, run) (ALERTS{alertstate="firing",run=~"$run",alertname=~"Vpred.*"})',
        "{{alertname}}",
    ),
]
LINK = {
    "type": "dashboards",
    "title": "vpred",
    "tags": ["vpred"],
    "asDropdown": True,
    "includeVars": True,
    "keepTime": True,
    "targetBlank": False,
    "icon": "external link",
    "tooltip": "",
    "url": "",
}
SOURCE_VARIABLE = {
    "name": "datasource",
    "label": "Data source",
    "type": "datasource",
    "query": "prometheus",
    "hide": 0,
    "includeAll": False,
    "multi": False,
    "options": [],
    "refresh": 1,
    "regex": "",
    "skipUrlSync": False,
}
