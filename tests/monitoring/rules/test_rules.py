"""Recording rules and alerts: promtool's own tests on what is committed, and what each alert must have."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from monitoring.rules.__main__ import groups, main, rendered
from monitoring.rules.alerts import ALERTS
from monitoring.rules.durations import expression, seconds, shortened
from monitoring.rules.recording import RECORDING
from support import CHECKOUT

COMMITTED = CHECKOUT / "monitoring" / "stack" / "rules" / "vpred.yml"
CASES = Path(__file__).with_name("cases.yml")
RUNBOOKS = CHECKOUT / "docs" / "operations" / "alerts.md"


def promtool(*arguments: str) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("no promtool; Debian has it in the package prometheus")
    answer = subprocess.run(["promtool", *arguments], capture_output=True, text=True, timeout=120)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_committed_file_is_that_of_the_python_data() -> None:
    """Otherwise: .venv/bin/python -m monitoring.rules monitoring/stack/rules/vpred.yml"""
    assert COMMITTED.read_text(encoding="utf-8") == rendered(groups())


def test_promtool_finds_the_rules_sound() -> None:
    assert f"{len(RECORDING) + len(ALERTS)} rules found" in promtool("check", "rules", str(COMMITTED))


def test_promtool_passes_all_cases() -> None:
    promtool("test", "rules", str(CASES))


def test_every_alert_has_a_case_in_which_it_fires() -> None:
    tested = {
        each["alertname"]
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for each in case.get("alert_rule_test", [])
        if each["exp_alerts"]
    }
    assert tested == {alert.name for alert in ALERTS}


def test_rules_made_faster_are_sound_too(tmp_path: Path) -> None:
    file = tmp_path / "fast.yml"
    file.write_text(rendered(groups(faster=30)))
    promtool("check", "rules", str(file))
    rules = {rule.get("alert"): rule for rule in groups(faster=30)["groups"][1]["rules"]}
    assert rules["VpredStraggler"]["for"] == "20s"
    assert "20 * " in rules["VpredStalled"]["expr"] and ", 10)" in rules["VpredStalled"]["expr"]


def test_every_expression_is_promql() -> None:
    for group in groups()["groups"]:
        for rule in group["rules"]:
            promql_parser.parse(rule["expr"])


def test_every_alert_leads_to_its_heading() -> None:
    """One heading for each, which says what it means, what to look at and what to do."""
    sections = re.split(r"^### ", RUNBOOKS.read_text(encoding="utf-8"), flags=re.M)[1:]
    named = {section.partition("\n")[0].strip(): section for section in sections}
    assert list(named) == [alert.name for alert in ALERTS]
    for alert, rule in zip(ALERTS, groups()["groups"][1]["rules"], strict=True):
        assert rule["annotations"]["runbook_url"] == f"docs/operations/alerts.md#{alert.name.lower()}"
        for part in ("**Means.**", "**Look at.**", "**Do.**"):
            assert part in named[alert.name], (alert.name, part)
        assert f"`{alert.severity}`" in named[alert.name]


def test_runbooks_may_lie_elsewhere(tmp_path: Path) -> None:
    file = tmp_path / "rules.yml"
    assert main([str(file), "--runbooks", "https://docs.example/alerts.html"]) == 0
    assert "runbook_url: https://docs.example/alerts.html#vpredstalled" in file.read_text()


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "no" / "rules.yml")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "rules.yml: cannot be written" in line


def test_severities_are_few_and_names_unique() -> None:
    assert len({alert.name for alert in ALERTS}) == len(ALERTS) >= 20
    # One step, one flap or one failed read must not call a person: what is not counted must last.
    at_once = {alert.name for alert in ALERTS if alert.lasting is None}
    counted: dict[str, Any] = {alert.name: alert for alert in ALERTS if "increase" in alert.expr}
    assert at_once - set(counted) == {"VpredRunFailed", "VpredGradNormSpike", "VpredWatchdog"}


@pytest.mark.parametrize(
    ("text", "faster", "made"),
    [
        ("rate(x[5m])", 1, "rate(x[5m])"),
        ("rate(x[5m])", 30, "rate(x[10s])"),
        ("rate(x[1m])", 30, "rate(x[10s])"),  # two scrapes at least
        ("increase(x[1h:1m]) > 0", 60, "increase(x[60s:1s]) > 0"),
        ("max_over_time(x[1h:])", 60, "max_over_time(x[60s:])"),
        ("time() - x > 2m", 1, "time() - x > 120"),
        ("time() - x > 2m", 60, "time() - x > 2"),
        ("x offset 6h", 1, "x offset 6h"),
        ("x offset 6h", 60, "x offset 360s"),
        ("run:x:mean5m > 1.5\n   * y", 60, "run:x:mean5m > 1.5 * y"),
        ("p99_5m + 15m", 1, "p99_5m + 900"),
    ],
)
def test_durations_are_rendered(text: str, faster: float, made: str) -> None:
    assert expression(text, faster) == made


def test_durations_have_units() -> None:
    assert [seconds(each) for each in ("7s", "5m", "2h", "1d")] == [7, 300, 7200, 86400]
    assert shortened("30s", 30) == "1s"
    for wrong in ("5", "5 m", "m5", "5w", ""):
        with pytest.raises(ValueError, match="is not a duration"):
            seconds(wrong)
