"""Discovery over ssh on real hosts. Their NPUs are files and scripts that answer as the tools' documentation says."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import CHECKOUT
from support.hosts import Hosts, unavailable

FAKE_LAUNCH = CHECKOUT / "tests" / "launcher" / "fake_launch.py"
CLUSTER = """
name: two
accelerator: ascend
metrics: {address: 0.0.0.0}
hosts: [{address: h0}, {address: h1}]
"""
HCCN_TOOL = """#!/bin/sh
[ "$*" = "-i $2 -ip -g" ] && echo "ipaddr:192.168.$2.1$(hostname | tr -d h)" && echo "netmask:255.255.255.0"
"""
NPU_SMI = """#!/bin/sh
[ "$*" = "info -m" ] || { echo "This device does not support querying spod-info."; exit 1; }
printf '\\t%s\\n' "NPU ID Chip ID Chip Logic ID Chip Name" "0 0 0 Ascend 910B3" "0 1 - Mcu" "1 0 1 Ascend 910B3"
"""

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as made:
        yield made


@pytest.fixture
def generate(tmp_path: Path) -> list[str]:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    words = ["ranktable", "generate", "--discover", "--cluster", str(cluster)]
    return [sys.executable, "-P", "-m", "launcher.cli", *words]


def test_hosts_without_npus_and_hosts_out_of_reach_are_told(hosts: Hosts, generate: list[str]) -> None:
    answer = hosts.run("h0", generate, env={"PYTHONPATH": str(CHECKOUT)})
    assert (answer.returncode, answer.stdout) == (2, "")
    lines = answer.stderr.splitlines()
    assert [line.partition(" (")[0] for line in lines] == ["h0: no /dev/davinci*", "h1: no /dev/davinci*"]
    hosts.cut("h1")
    try:
        cut = hosts.run("h0", generate, env={"PYTHONPATH": str(CHECKOUT)})
    finally:
        hosts.heal("h1")
    assert cut.returncode == 2 and "h1: ssh: connect to host h1" in cut.stderr


def test_a_table_of_what_two_hosts_have_and_a_run_of_another(hosts: Hosts, generate: list[str], tmp_path: Path) -> None:
    dev, tools = tmp_path / "dev", tmp_path / "tools"
    dev.mkdir()
    tools.mkdir()
    for name in ("null", "zero", "urandom", "davinci0", "davinci1", "davinci_manager"):
        (dev / name).touch()
    for name, text in (("hccn_tool", HCCN_TOOL), ("npu-smi", NPU_SMI)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    mounts = [f"mount --bind /dev/{name} {dev}/{name}" for name in ("null", "zero", "urandom")]
    mounts += [f"mount --rbind {dev} /dev", f"mount --bind {tools} /usr/local/sbin"]
    for host in hosts.names:
        hosts.run(host, ["sh", "-ec", "\n".join(mounts)]).check_returncode()
    answer = hosts.run("h0", generate, env={"PYTHONPATH": str(CHECKOUT)})
    assert answer.returncode == 0, answer.stderr
    assert json.loads(answer.stdout)["server_list"] == [
        {
            "server_id": host,
            "device": [
                {
                    "device_id": str(device),
                    "rank_id": str(2 * number + device),
                    "device_ip": f"192.168.{device}.1{number}",
                }
                for device in (0, 1)
            ],
        }
        for number, host in enumerate(hosts.names)
    ]

    listed = [f"{{address: h{n}, devices: [{{id: 1, ip: 192.168.1.1{2 * n}}}]}}" for n in (0, 1)]
    (tmp_path / "wrong.yaml").write_text(CLUSTER.replace("[{address: h0}, {address: h1}]", f"[{', '.join(listed)}]"))
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    argv = [sys.executable, "-P", str(FAKE_LAUNCH), "check", "--cluster", str(tmp_path / "wrong.yaml")]
    argv += ["--recipe", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
    run = hosts.run("h0", [*argv, "cluster.launcher.allow_run_as_root=true"], env={"PYTHONPATH": str(CHECKOUT)})
    assert run.returncode == 2, run.stderr
    errors = [line for line in run.stdout.splitlines() if line.startswith("error")]
    assert errors == [
        "error   rank table: h1 device 1 has 192.168.1.11, the rank table says 192.168.1.12 (HCCL: EI0014); "
        "take what `vpred-launch ranktable generate --discover --to hosts` says"
    ]
