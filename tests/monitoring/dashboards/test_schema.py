"""The dashboards against Grafana's own types: @grafana/schema and TypeScript find misspelt keys and wrong values.

Needs node and npm, and the registry once: the packages stay in .venv/grafana-schema.
"""

import copy
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from support import CHECKOUT, TESTS
from support.dashboards import committed, panels

INSTALLED = CHECKOUT / ".venv" / "grafana-schema"
LOCKED = TESTS / "support" / "grafana"
# Kind of a panel -> (folder, prefix) of its types, and whether it has a type of fieldConfig.custom.
KINDS = {
    "timeseries": ("timeseries", "TimeSeries", True),
    "stat": ("stat", "Stat", False),
    "table": ("table", "Table", True),
    "heatmap": ("heatmap", "Heatmap", True),
    "state-timeline": ("statetimeline", "StateTimeline", True),
    "bargauge": ("bargauge", "BarGauge", False),
    "text": ("text", "Text", False),
}
# Enums of the schema accept the strings that they stand for.
PROLOGUE = """
import type { Dashboard, AnnotationQuery, DataQuery } from '@grafana/schema';
type Plain<T> = T extends string ? `${T}` : T extends (infer U)[] ? Plain<U>[]
  : T extends object ? { [K in keyof T]: Plain<T[K]> } : T;
type Prometheus = DataQuery & { expr: string; interval?: string };
type Annotation = Omit<Plain<AnnotationQuery>, 'target'>
  & { target: Prometheus; titleFormat?: string; textFormat?: string; useValueForTime?: boolean };
"""


@pytest.fixture(scope="module")
def node_modules() -> Path:
    """The folder of the packages. Skips where they cannot be had."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}")
    lock = (LOCKED / "package-lock.json").read_text()
    installed = INSTALLED / "package-lock.json"
    if not (INSTALLED / "node_modules").exists() or installed.read_text() != lock:
        INSTALLED.mkdir(exist_ok=True)
        for name in ("package.json", "package-lock.json"):
            shutil.copy(LOCKED / name, INSTALLED)
        argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        answer = subprocess.run(argv, cwd=INSTALLED, capture_output=True, text=True, timeout=300)
        if answer.returncode != 0:
            shutil.rmtree(INSTALLED / "node_modules", ignore_errors=True)
            pytest.skip(f"npm cannot install @grafana/schema: {answer.stderr.strip().splitlines()[-1:]}")
    return INSTALLED / "node_modules"


def typescript(dashboard: dict[str, Any]) -> str:
    """A program that has the types of a dashboard, of its annotations and of all its panels."""
    lines = [PROLOGUE]
    for folder, prefix, has_custom in KINDS.values():
        types = f"Options as {prefix}" + (f", FieldConfig as {prefix}Custom" if has_custom else "")
        path = f"@grafana/schema/dist/esm/raw/composable/{folder}/panelcfg/x/{prefix}PanelCfg_types.gen"
        lines.append(f"import type {{ {types} }} from '{path}';")
    rest = {key: value for key, value in dashboard.items() if key != "annotations"}
    lines.append(f"export const dashboard: Plain<Omit<Dashboard, 'annotations'>> = {json.dumps(rest)};")
    lines.append(f"export const annotations: Annotation[] = {json.dumps(dashboard['annotations']['list'])};")
    for panel in panels(dashboard):
        _, prefix, has_custom = KINDS[panel["type"]]
        number = panel["id"]
        lines.append(f"export const o{number}: Plain<Partial<{prefix}>> = {json.dumps(panel['options'])};")
        custom = panel["fieldConfig"]["defaults"].get("custom")
        if has_custom and custom is not None:
            lines.append(f"export const c{number}: Plain<Partial<{prefix}Custom>> = {json.dumps(custom)};")
    return "\n".join(lines) + "\n"


def faults(programs: dict[str, str], folder: Path, node_modules: Path) -> str:
    (folder / "node_modules").symlink_to(node_modules)
    for name, text in programs.items():
        (folder / f"{name}.ts").write_text(text, encoding="utf-8")
    compiler = node_modules / "typescript" / "bin" / "tsc"
    options = ("--noEmit", "--strict", "--skipLibCheck", "--moduleResolution", "bundler", "--module", "esnext")
    argv = ["node", str(compiler), *options, *(f"{name}.ts" for name in programs)]
    return subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=300).stdout


def test_dashboards_have_the_types_of_grafana(tmp_path: Path, node_modules: Path) -> None:
    programs = {dashboard["uid"]: typescript(dashboard) for dashboard in committed().values()}
    assert faults(programs, tmp_path, node_modules) == ""


def test_types_find_what_grafana_does_not_know(tmp_path: Path, node_modules: Path) -> None:
    """One file for each planted fault. Every file must be named."""
    base = committed()["vpred-run.json"]
    curve = next(number for number, panel in enumerate(base["panels"]) if panel["type"] == "timeseries")
    planted = {name: copy.deepcopy(base) for name in ("key", "type", "choice", "custom", "annotation")}
    planted["key"]["graphToltip"] = 1
    planted["type"]["panels"][0]["gridPos"]["h"] = "4"
    planted["choice"]["panels"][curve]["options"]["legend"]["placement"] = "left"
    planted["custom"]["panels"][curve]["fieldConfig"]["defaults"]["custom"]["drawStyle"] = "curve"
    planted["annotation"]["annotations"]["list"][0]["iconColour"] = "red"
    found = faults({name: typescript(each) for name, each in planted.items()}, tmp_path, node_modules)
    assert {line.partition(".ts")[0] for line in found.splitlines() if ".ts(" in line} == set(planted)
