"""A real run of two ranks, scraped by a real Prometheus from its start to its end."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from monitoring.dashboards.__main__ import DASHBOARDS
from monitoring.rules.__main__ import groups, rendered
from support.dashboards import Answer, answers
from support.jobs import SMALL_RECIPE, end, free_ports, start, wait_until, write_images
from support.prometheus import (
    Prometheus,
    configuration,
    fetched,
    free_port,
    need,
    node_exporter,
    prometheus,
    server,
    wait_for,
)

pytestmark = pytest.mark.long

FASTER = 30
RUN = "real"
SETTINGS = (
    "total_samples=2400",
    "final_samples=0",
    "data.path=images",
    "checkpoint.every_samples=100",
    "validation={every_samples: 100, share: 0.5}",
)
# The reasons of empty queries that hold here.
EMPTY_HERE = {"no host failed", "the device reports no memory, as CPU does", "no alert of this run fired"}
if not Path("/proc/pressure").exists():
    EMPTY_HERE.add("a kernel without PSI")
# No NPU is here. npu-exporter's queries are asked in test_simulated_runs.
HERE = [dashboard for dashboard in DASHBOARDS if dashboard.uid != "vpred-npu"]
# It is about the machine, which other tests share.
OF_THE_MACHINE = {"VpredHostMemory"}


@contextmanager
def watched(folder: Path, runs: Path) -> Iterator[tuple[Prometheus, int]]:
    """Prometheus with node exporter and `vpred-launch serve`, and the port of the latter."""
    served = free_port()
    argv = [sys.executable, "-P", "-m", "launcher.cli", "serve", str(runs), "--listen", f"127.0.0.1:{served}"]
    ready = f"http://127.0.0.1:{served}/healthz"
    with server(argv, folder / "serve.log", ready), node_exporter(folder / "node.log") as node:
        host = {"targets": [f"127.0.0.1:{node}"], "labels": {"hostname": socket.gethostname()}}
        jobs = {
            "vpred": {"http_sd_configs": [{"url": f"http://127.0.0.1:{served}/sd", "refresh_interval": "1s"}]},
            "vpred-launcher": {"static_configs": [{"targets": [f"127.0.0.1:{served}"]}]},
            "node": {"static_configs": [host]},
        }
        with prometheus(folder / "prometheus", configuration(jobs), rendered(groups(FASTER))) as running:
            yield running, served


def missing(running: Prometheus) -> list[Answer]:
    """The queries without an answer that should have one."""
    found = [each for dashboard in HERE for each in answers(running, dashboard, RUN, span_s=60)]
    return [each for each in found if each.series == 0 and each.may_be_empty not in EMPTY_HERE]


def promtool_checks(url: str) -> None:
    answer = subprocess.run(["promtool", "check", "metrics"], input=fetched(url), capture_output=True, text=True)
    assert answer.returncode == 0, f"{url}: {answer.stdout}{answer.stderr}"


def test_a_real_run_fills_the_dashboards_and_fires_nothing(tmp_path: Path) -> None:
    need("prometheus", "promtool", "prometheus-node-exporter")
    recipe, run = tmp_path / "small.yaml", tmp_path / "runs" / RUN
    recipe.write_text(SMALL_RECIPE)
    write_images(tmp_path / "images", 16)
    port, began = free_ports(2), time.time()
    process = start(recipe, run, 2, port, SETTINGS)
    try:
        wait_until((run / "plan.json").exists, process)
        with watched(tmp_path, run.parent) as (running, served):
            wait_for(lambda: running.value(f'sum(up{{run="{RUN}"}})') == 2, "scrape of both ranks", 120)
            left = missing(running)
            deadline = time.monotonic() + 180
            while left and time.monotonic() < deadline:
                if process.poll() is not None:
                    pytest.fail(f"it ended with {[each.place for each in left]} empty\n{process.communicate()[0]}")
                left = missing(running)
            assert [each.place for each in left] == []
            for address in (served, port, port + 1):
                promtool_checks(f"http://127.0.0.1:{address}/metrics")
            code, output = end(process)
            assert code == 0, output
            time.sleep(20)  # longer than any alert about the end of a run needs
            assert [rule["name"] for rule in running.rules() if rule["health"] != "ok"] == []
            assert running.value(f'vpred_launcher_run_state{{run="{RUN}",state="complete"}}') == 1
            assert running.fired(began) - OF_THE_MACHINE == {"VpredWatchdog"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
