"""The monitoring stack: what its programs say about its files, and `up.sh` on a host without docker."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.rules.alerts import ALERTS
from support.prometheus import STACK, need

UP = STACK / "up.sh"


def document(name: str) -> Any:
    return yaml.safe_load((STACK / name).read_text(encoding="utf-8"))


def test_promtool_finds_the_configuration_sound() -> None:
    need("promtool")
    answer = subprocess.run(
        ["promtool", "check", "config", str(STACK / "prometheus.yml")], capture_output=True, text=True
    )
    assert answer.returncode == 0 and "SUCCESS" in answer.stdout, answer.stdout + answer.stderr


def test_amtool_finds_the_configuration_sound() -> None:
    need("amtool")
    answer = subprocess.run(["amtool", "check-config", str(STACK / "alertmanager.yml")], capture_output=True, text=True)
    assert answer.returncode == 0 and "SUCCESS" in answer.stdout, answer.stdout + answer.stderr


@pytest.mark.parametrize(
    ("labels", "receiver"),
    [
        (("alertname=VpredStalled", "severity=page", "run=a"), "pager"),
        (("alertname=VpredSlower", "severity=warn", "run=a"), "chat"),
        (("alertname=VpredGradNormSpike", "severity=info", "run=a"), "nobody"),
        (("alertname=VpredWatchdog", "severity=none"), "watchdog"),
    ],
)
def test_each_severity_goes_to_its_receiver(labels: tuple[str, ...], receiver: str) -> None:
    need("amtool")
    argv = ["amtool", "config", "routes", "test", f"--config.file={STACK / 'alertmanager.yml'}", *labels]
    assert subprocess.run(argv, capture_output=True, text=True).stdout.split() == [receiver]


def test_inhibition_names_alerts_that_exist() -> None:
    text = (STACK / "alertmanager.yml").read_text()
    named = set(re.findall(r"\b(?:Vpred|Npu)\w+", text))
    assert len(named) > 10 and named <= {alert.name for alert in ALERTS}


def test_grafana_knows_the_scrape_interval() -> None:
    """$__rate_interval is four times timeInterval. A shorter one than the scrapes' makes rates empty."""
    (source,) = document("grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["jsonData"]["timeInterval"] == document("prometheus.yml")["global"]["scrape_interval"]


def test_containers_are_pinned_and_have_few_rights() -> None:
    compose = document("docker-compose.yml")
    services = compose["services"]
    assert set(services) == {"prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+\.\d+", service["image"]), name
        assert service["read_only"] and service["cap_drop"] == ["ALL"], name
        assert int(service["user"].partition(":")[0]) > 0, name
        listens = [word for word in service.get("command", ()) if "web.listen-address" in word]
        address = listens[0] if listens else service["environment"]["GF_SERVER_HTTP_ADDR"]
        assert "127.0.0.1" in address, name
    assert "${GRAFANA_PASSWORD:?" in services["grafana"]["environment"]["GF_SECURITY_ADMIN_PASSWORD"]
    sources = [volume.partition(":")[0] for service in services.values() for volume in service["volumes"]]
    for source in sources:
        assert source in compose["volumes"] or "VPRED_TARGETS" in source or (STACK / source).exists(), source


def up(*arguments: str, path: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": path or os.environ["PATH"], "HOME": os.environ["HOME"], **environment}
    return subprocess.run(["/bin/bash", str(UP), *arguments], capture_output=True, text=True, env=env, timeout=60)


def programs(folder: Path, *names: str, **scripts: str) -> str:
    """A PATH with these programs of the system and these scripts alone."""
    folder.mkdir()
    for name in ("bash", "dirname", "realpath", "mkdir", "cp", "ln", "sed", "env", *names):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    return str(folder)


def test_up_names_what_it_does_not_know(tmp_path: Path) -> None:
    for arguments, words in ((["--port"], "does not know --port"), (["--data"], "--data needs a folder")):
        answer = up(*arguments)
        assert answer.returncode == 2 and words in answer.stderr and len(answer.stderr.splitlines()) == 1
    (tmp_path / "file").write_text("")
    answer = up("--targets", str(tmp_path / "file" / "x"))
    assert answer.returncode == 2 and "name another folder with --targets" in answer.stderr
    assert "--targets FOLDER" in up("--help").stdout


def test_up_says_what_is_missing(tmp_path: Path) -> None:
    answer = up("--targets", str(tmp_path / "targets"), path=programs(tmp_path / "bin"))
    assert answer.returncode == 2
    assert "found neither docker compose nor prometheus" in answer.stderr


def test_up_starts_docker_compose_where_it_is_and_demands_a_password(tmp_path: Path) -> None:
    path = programs(tmp_path / "bin", docker=f'echo "$VPRED_TARGETS $*" >>{tmp_path}/calls')
    targets = tmp_path / "targets"
    answer = up("--targets", str(targets), path=path)
    assert answer.returncode == 2 and "set GRAFANA_PASSWORD" in answer.stderr
    answer = up("--targets", str(targets), path=path, **{"GRAFANA_PASSWORD": "hidden"})
    assert answer.returncode == 0 and "http://127.0.0.1:3000" in answer.stdout and "hidden" not in answer.stdout
    assert (tmp_path / "calls").read_text().splitlines()[-1] == (
        f"{targets} compose --file {STACK}/docker-compose.yml up --detach"
    )


@pytest.mark.hosts
@pytest.mark.skipif(os.geteuid() != 0, reason="a network namespace needs root")
def test_up_without_docker_starts_both_in_the_foreground_and_ends_both(tmp_path: Path) -> None:
    """In a network of its own, since the ports are fixed."""
    need("prometheus", "prometheus-alertmanager", "ip", "curl")
    path = f"{programs(tmp_path / 'bin', docker='exit 1')}:{os.environ['PATH']}"
    script = f"""
        ip link set lo up
        exec /bin/bash {UP} --targets {tmp_path}/targets --data {tmp_path}/data
    """
    argv = ["unshare", "--net", "/bin/bash", "-c", script]
    with (tmp_path / "out").open("w") as out:
        process = subprocess.Popen(argv, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, "PATH": path})
    inside = ["nsenter", "--net", "--target", str(process.pid), "curl", "--noproxy", "*", "--silent", "--fail"]
    try:
        for port, word in ((9090, "VpredStalled"), (9093, "pager")):
            url = f"http://127.0.0.1:{port}/api/{'v1/rules' if port == 9090 else 'v2/status'}"
            deadline = time.monotonic() + 60
            while word not in (text := subprocess.run([*inside, url], capture_output=True, text=True).stdout):
                assert process.poll() is None and time.monotonic() < deadline, (text, (tmp_path / "out").read_text())
                time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
    text = (tmp_path / "out").read_text()
    assert "there is no Grafana" in text and "http://127.0.0.1:9399/" in text
    running = subprocess.run(["pgrep", "--full", f"{tmp_path}/data"], capture_output=True, text=True).stdout
    assert running == ""
