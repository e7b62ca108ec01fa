"""Prometheus, Alertmanager and node exporter as Debian has them, on free ports and folders of a test.

Each is ended when its `with` block ends, or with this process.
"""

import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from support import CHECKOUT

STACK = CHECKOUT / "monitoring" / "stack"
DEADLINE_S = 60
_LOOPBACK = urllib.request.build_opener(urllib.request.ProxyHandler({}))
# Ends a server with the thread that started it: `setpriv --pdeathsig` of util-linux, so that nothing outlives a test.
_TIED = ("setpriv", "--pdeathsig", "KILL")


def need(*programs: str) -> None:
    """Skip the test where a program is missing."""
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"no {program}; tests/run.sh installs it on Debian")


def free_port() -> int:
    """A port that the kernel hands out: none of those that `support.jobs.free_ports` gives to runs, which bind late."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def fetched(url: str, timeout_s: float = 30) -> str:
    with _LOOPBACK.open(url, timeout=timeout_s) as answer:
        text: str = answer.read().decode()
        return text


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
    """The first true answer of `condition`. Fails the test after `deadline_s`."""
    deadline = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"no {what} within {deadline_s} s"
        time.sleep(0.2)
    return found


@contextmanager
def server(argv: Sequence[str], log: Path, ready: str, env: Mapping[str, str] | None = None) -> Iterator[None]:
    """A server, from when it answers at the address `ready`. Its port is taken then, so the next is a free one."""
    with log.open("w") as output:
        process = subprocess.Popen([*_TIED, *argv], stdout=output, stderr=subprocess.STDOUT, env=env)
    try:
        wait_for(lambda: _is_ready(ready, process, log), f"answer of {argv[0]} at {ready}")
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> bool:
    assert process.poll() is None, log.read_text()[-2000:]
    try:
        fetched(url)
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Prometheus:
    """A running Prometheus."""

    port: int

    def query(self, expr: str, **parameters: Any) -> list[dict[str, Any]]:
        """The series of an instant query, or of a range when `start`, `end` and `step` are given.

        Raises AssertionError: with Prometheus' own words, when it refuses the query.
        """
        path = "query_range" if "start" in parameters else "query"
        words = urllib.parse.urlencode({"query": expr, **parameters})
        try:
            answer = json.loads(fetched(f"http://127.0.0.1:{self.port}/api/v1/{path}?{words}"))
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expr}: {error.read().decode()}") from None
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expr: str) -> float | None:
        """The value of a query that answers one series; None when it answers none."""
        found = self.query(expr)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else None

    def rules(self) -> list[dict[str, Any]]:
        answer = json.loads(fetched(f"http://127.0.0.1:{self.port}/api/v1/rules"))
        return [rule for group in answer["data"]["groups"] for rule in group["rules"]]

    def firing(self) -> dict[str, dict[str, str]]:
        """Name of each alert that fires -> labels of its first."""
        alerts = json.loads(fetched(f"http://127.0.0.1:{self.port}/api/v1/alerts"))["data"]["alerts"]
        found = [each["labels"] for each in alerts if each["state"] == "firing"]
        return {labels["alertname"]: labels for labels in reversed(found)}

    def fired(self, since_unix_s: float) -> set[str]:
        """Names of all alerts that have fired since."""
        now = time.time()
        expr = f'ALERTS{{alertstate="firing"}}[{max(1, round(now - since_unix_s))}s]'
        return {series["metric"]["alertname"] for series in self.query(expr, time=now)}


def configuration(jobs: dict[str, dict[str, Any]], *, alertmanager_port: int | None = None) -> dict[str, Any]:
    """The stack's own prometheus.yml, scraping each second, with other ways to find targets.

    jobs: name of a job of the file -> its targets; other jobs are left out
    """
    found: dict[str, Any] = yaml.safe_load((STACK / "prometheus.yml").read_text())
    found["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s", "scrape_timeout": "1s"}
    found["rule_files"] = ["rules.yml"]
    found["scrape_configs"] = [each for each in found["scrape_configs"] if each["job_name"] in jobs]
    for job in found["scrape_configs"]:
        for key in ("http_sd_configs", "file_sd_configs", "static_configs", "scrape_interval"):
            job.pop(key, None)
        job |= jobs[job["job_name"]]
    found.pop("alerting")
    if alertmanager_port is not None:
        found["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager_port}"]}]}]}
    return found


@contextmanager
def prometheus(folder: Path, config: dict[str, Any], rules: str) -> Iterator[Prometheus]:
    need("prometheus", "promtool")
    folder.mkdir()
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    (folder / "rules.yml").write_text(rules)
    check = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=folder, capture_output=True, text=True
    )
    assert check.returncode == 0, check.stdout + check.stderr
    port = free_port()
    argv = ["prometheus", f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn", "--query.lookback-delta=15s"]
    with server(argv, folder / "log", f"http://127.0.0.1:{port}/-/ready"):
        yield Prometheus(port)


@contextmanager
def alertmanager(folder: Path, config: dict[str, Any]) -> Iterator[int]:
    """Its port."""
    need("prometheus-alertmanager")
    folder.mkdir()
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(config, sort_keys=False))
    port = free_port()
    argv = ["prometheus-alertmanager", f"--config.file={folder}/alertmanager.yml", f"--storage.path={folder}/data"]
    argv += [f"--web.listen-address=127.0.0.1:{port}", "--cluster.listen-address=", "--log.level=warn"]
    with server(argv, folder / "log", f"http://127.0.0.1:{port}/-/ready"):
        yield port


@contextmanager
def node_exporter(log: Path) -> Iterator[int]:
    """Its port."""
    need("prometheus-node-exporter")
    port = free_port()
    argv = ["prometheus-node-exporter", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
    with server(argv, log, f"http://127.0.0.1:{port}/metrics"):
        yield port


@dataclass
class Webhook:
    """Receives what Alertmanager sends. `received` has (receiver, status, labels) of each alert in each message."""

    port: int = 0
    received: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)

    def of(self, alertname: str, status: str) -> list[dict[str, str]]:
        """Labels of each message about an alert in a status."""
        return [labels for _, found, labels in self.received if found == status and labels["alertname"] == alertname]


@contextmanager
def webhook() -> Iterator[Webhook]:
    hook = Webhook()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            for alert in body["alerts"]:
                hook.received.append((body["receiver"], alert["status"], alert["labels"]))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook.port = server.server_port
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hook
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
