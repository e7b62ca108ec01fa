"""Rules, alerts and dashboards on a real Prometheus and Alertmanager, with simulated runs of the real metrics.

One run has 64 ranks and no fault. Each fault of support.programs.simulated_runs has a run of its own, so that all
happen at once. All durations of the rules are 30 times shorter, and scrapes are a second apart.
"""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from monitoring.dashboards.__main__ import DASHBOARDS
from monitoring.rules.__main__ import groups, rendered
from monitoring.rules.recording import RECORDING
from support import PROGRAMS, PYTHONPATH
from support.dashboards import answers
from support.programs.simulated_runs import CALM, FAULTS
from support.prometheus import (
    STACK,
    Prometheus,
    Webhook,
    alertmanager,
    configuration,
    free_port,
    prometheus,
    server,
    webhook,
)

pytestmark = pytest.mark.long

FASTER = 30
RANKS = 64
ALERTS_S, QUERIES_S = 215, 300  # since the start: all faults are over; five minutes of history
# Run -> the alerts that a person hears of. A killed launcher also counts as a failure that left no verdict.
EXPECTED = {
    "crash": {"VpredRestarted"},
    "nan": {"VpredNotFinite"},
    "stall": {"VpredStalled"},
    "straggler": {"VpredStraggler"},
    "killed": {"VpredLauncherGone", "VpredRestarted"},
    "full-disk": {"VpredDiskFills"},
    "checkpoint": {"VpredCheckpointOld"},
    CALM: set(),
    "night": set(),
}
# The reasons of empty queries that hold here. For all others the simulated run of 64 ranks has data.
EMPTY_HERE = {"no host failed", "no alert of this run fired"}


@dataclass(frozen=True)
class World:
    prometheus: Prometheus
    webhook: Webhook
    began_unix_s: float

    def wait_until(self, seconds: float) -> None:
        time.sleep(max(0.0, self.began_unix_s + seconds - time.time()))


def _discovered(port: int, kind: str) -> dict[str, object]:
    return {"http_sd_configs": [{"url": f"http://127.0.0.1:{port}/sd/{kind}", "refresh_interval": "1s"}]}


def _alerting(port: int) -> dict[str, object]:
    """The stack's own alertmanager.yml, quicker, with a webhook for each receiver."""
    found: dict[str, object] = yaml.safe_load((STACK / "alertmanager.yml").read_text())
    route = found["route"]
    assert isinstance(route, dict)
    route |= {"group_wait": "1s", "group_interval": "2s"}
    hook = {"url": f"http://127.0.0.1:{port}/", "send_resolved": True}
    found["receivers"] = [
        {"name": name, "webhook_configs": [] if name == "nobody" else [hook]}
        for name in ("chat", "pager", "watchdog", "nobody")
    ]
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder, port = tmp_path_factory.mktemp("world"), free_port()
    argv = [sys.executable, "-P", str(PROGRAMS / "simulated_runs.py"), str(port), str(RANKS)]
    env = {**os.environ, "PYTHONPATH": PYTHONPATH}
    with (
        server(argv, folder / "simulator.log", f"http://127.0.0.1:{port}/sd/ranks", env),
        webhook() as hook,
        alertmanager(folder / "alertmanager", _alerting(hook.port)) as alerts,
    ):
        began = time.time()
        jobs = {
            "vpred": _discovered(port, "ranks"),
            "vpred-launcher": {
                "metrics_path": "/launcher",
                "static_configs": [{"targets": [f"127.0.0.1:{port}"]}],
            },
            "npu-exporter": _discovered(port, "npu"),
            "node": _discovered(port, "node"),
        }
        config = configuration(jobs, alertmanager_port=alerts)
        with prometheus(folder / "prometheus", config, rendered(groups(FASTER))) as running:
            yield World(running, hook, began)


def test_each_fault_reaches_a_person_once_and_resolves(world: World) -> None:
    """The runs without a fault, one of them from its start to its end, reach nobody."""
    world.wait_until(ALERTS_S)
    wanted = sorted((run, alert) for run, alerts in EXPECTED.items() for alert in alerts)
    for status in ("firing", "resolved"):
        heard = sorted(
            (labels["run"], labels["alertname"])
            for _, found, labels in world.webhook.received
            if found == status and "run" in labels
        )
        assert heard == wanted, status
    assert set(FAULTS) == {run for run, alerts in EXPECTED.items() if alerts}


def test_alerts_fire_in_prometheus_with_their_labels(world: World) -> None:
    world.wait_until(ALERTS_S)
    fired = world.prometheus.query('count by (alertname, run) (last_over_time(ALERTS{alertstate="firing"}[5m]))')
    found = {(each["metric"].get("run", ""), each["metric"]["alertname"]) for each in fired}
    assert {(run, alert) for run, alerts in EXPECTED.items() for alert in alerts} <= found
    assert {alert for run, alert in found if run in (CALM, "night")} == set()
    (straggler,) = world.webhook.of("VpredStraggler", "firing")
    assert straggler.items() >= {"rank": "1", "hostname": "straggler-0", "device_id": "1"}.items()


def test_each_severity_came_by_its_receiver(world: World) -> None:
    world.wait_until(ALERTS_S)
    receivers = {labels["severity"]: receiver for receiver, _, labels in world.webhook.received}
    assert receivers == {"page": "pager", "warn": "chat", "none": "watchdog"}
    # One device in each host has errors on its links, in the simulated npu-exporter.
    assert {labels["id"] for labels in world.webhook.of("NpuLinkErrors", "firing")} == {"2"}


def test_rules_are_healthy_and_recorded(world: World) -> None:
    world.wait_until(ALERTS_S)
    assert {rule["name"]: rule.get("lastError") for rule in world.prometheus.rules() if rule["health"] != "ok"} == {}
    for name in RECORDING:
        assert world.prometheus.query(f'{name}{{run="night"}}'), name


def test_every_query_of_the_dashboards_answers(world: World) -> None:
    world.wait_until(QUERIES_S)
    found = [answer for dashboard in DASHBOARDS for answer in answers(world.prometheus, dashboard, "night", span_s=240)]
    assert [each.place for each in found if each.series == 0 and each.may_be_empty not in EMPTY_HERE] == []
    assert [each.place for each in found if each.kind == "timeseries" and each.series > 30] == []
    slowest = max(found, key=lambda each: each.seconds)
    per_rank = world.prometheus.value('max(scrape_samples_scraped{job="vpred",run="night",rank!="0"})')
    first = world.prometheus.value('scrape_samples_scraped{job="vpred",run="night",rank="0"}')
    launcher = world.prometheus.value('count({run="night",__name__=~"vpred_launcher_.*"})')
    print(f"{len(found)} queries, slowest {slowest.seconds:.3f} s ({slowest.place})")
    print(f"series: {per_rank:.0f} on a rank, {first:.0f} on rank 0, {launcher:.0f} of the launcher")
    assert len(found) > 80
    assert per_rank is not None and per_rank <= 20
