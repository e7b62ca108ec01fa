"""Objects for the Prometheus operator: made of the same rules and dashboards, and valid by the operator's schemas."""

import json
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from monitoring.kubernetes.__main__ import main, rendered
from monitoring.kubernetes.objects import files
from monitoring.rules.__main__ import groups
from support import CHECKOUT
from support.custom_kinds import faults_of_custom_kind
from support.dashboards import committed
from support.manifests import objects

FOLDER = CHECKOUT / "monitoring" / "kubernetes"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((FOLDER / name).read_text(encoding="utf-8")))


def test_the_committed_files_are_those_of_the_python_data() -> None:
    """Otherwise: .venv/bin/python -m monitoring.kubernetes monitoring/kubernetes"""
    found = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.yaml")}
    assert found == {name: rendered(each) for name, each in files().items()}


def test_rules_and_dashboards_are_those_of_the_stack() -> None:
    (rule,) = documents("prometheusrule.yaml")
    assert rule["spec"] == groups()
    maps = documents("dashboards.yaml")
    assert {name: json.loads(text) for each in maps for name, text in each["data"].items()} == committed()
    assert {each["metadata"]["labels"]["grafana_dashboard"] for each in maps} == {"1"}


@pytest.mark.parametrize("name", ["podmonitor.yaml", "servicemonitor.yaml", "prometheusrule.yaml"])
def test_custom_kinds_are_valid(name: str) -> None:
    assert [fault for each in documents(name) for fault in faults_of_custom_kind(each)] == []


@pytest.mark.parametrize("name", ["podmonitor.yaml", "servicemonitor.yaml", "prometheusrule.yaml"])
def test_validation_finds_an_unknown_field(name: str) -> None:
    (wrong, *_) = documents(name)
    wrong["spec"]["selektor"] = {}
    assert "selektor" in faults_of_custom_kind(wrong)[0]


def test_config_maps_are_valid() -> None:
    for each in documents("dashboards.yaml"):
        kubernetes_validate.validate(each, "1.33", strict=True)


def test_links_get_a_label_as_in_the_stack() -> None:
    stack = yaml.safe_load((FOLDER.parent / "stack" / "prometheus.yml").read_text())
    (job,) = [each for each in stack["scrape_configs"] if each["job_name"] == "npu-exporter"]
    _, exporter = documents("podmonitor.yaml")
    names = {"sourceLabels": "source_labels", "targetLabel": "target_label", "regex": "regex"}
    made = exporter["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    assert [{names[key]: value for key, value in each.items()} for each in made] == job["metric_relabel_configs"]


def test_a_job_of_its_own_monitor_has_the_labels_of_the_common_one() -> None:
    """`submit.kubernetes.pod_monitor` makes one for each job. Dashboards and alerts must not see a difference."""
    common, _ = documents("podmonitor.yaml")
    (own,) = [each for each in objects("volcano") if each["kind"] == "PodMonitor"]
    assert faults_of_custom_kind(own) == []
    for monitor in (own, common):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert not endpoint.get("honorLabels") and endpoint["port"].startswith("metrics-")
            assert {"action": "labeldrop", "regex": "exported_(run|hostname)"} in endpoint["metricRelabelings"]
            assert {each["targetLabel"] for each in endpoint["relabelings"]} == {"job", "run", "hostname"}
            assert {"targetLabel": "job", "replacement": "vpred"} in endpoint["relabelings"]


def test_the_common_monitor_finds_the_pods_of_a_job() -> None:
    common, _ = documents("podmonitor.yaml")
    wanted = common["spec"]["selector"]["matchLabels"].items()
    for case in ("job", "volcano", "mpijob", "ascendjob"):
        text = json.dumps(objects(case)[0])
        assert all(f'"{key}": "{value}"' in text for key, value in wanted), case


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main([str(tmp_path / "file" / "folder")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "file/folder: cannot be written" in line
