"""The generated pages are what docs/generate.py writes, and complete."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from monitoring import RankLabels, WorkerMetrics
from support import CHECKOUT

DOCS = CHECKOUT / "docs"


def test_the_generated_pages_are_current() -> None:
    argv = [sys.executable, "-P", str(DOCS / "generate.py"), "--check"]
    answer = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stderr


def test_every_console_script_has_its_section() -> None:
    scripts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]["scripts"]
    sections = set(re.findall(r"^## `([\w-]+)`$", (DOCS / "commands.md").read_text(), re.M))
    assert sections == set(scripts)


@pytest.mark.parametrize("command", [["vpred-train", "--print-schema"], ["vpred-launch", "schema"]])
def test_every_key_of_a_schema_has_its_row(command: list[str]) -> None:
    program = Path(sys.executable).with_name(command[0])
    answer = subprocess.run([str(program), *command[1:]], capture_output=True, text=True, check=True)
    schema = json.loads(answer.stdout)
    sections = [schema, *(each for each in schema["$defs"].values() if "properties" in each)]
    rows = set(re.findall(r"^\| `(\w+)` \|", (DOCS / "configuration.md").read_text(), re.M))
    keys = {key for section in sections for key in section["properties"]}
    assert len(keys) > 40
    assert keys <= rows


def test_every_metric_has_its_row() -> None:
    rows = set(re.findall(r"^\| `(vpred_\w+)` \|", (DOCS / "operations" / "metrics.md").read_text(), re.M))
    of_ranks = set()
    for each in WorkerMetrics(RankLabels("run", "0", "0", "host", "0")).registry.collect():
        of_ranks.add(each.name + "_total" * (each.type == "counter"))
    # The client appends _total to the names of counters.
    named = re.findall(
        r"\bvpred_launcher_\w+", "".join(path.read_text() for path in (CHECKOUT / "launcher").rglob("*.py"))
    )
    of_launcher = {each if each in rows else f"{each}_total" for each in named}
    assert rows == of_ranks | of_launcher
