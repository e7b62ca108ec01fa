"""Discovery over ssh on real hosts; they have no NPU, and that is what it must say of each."""

import sys
from pathlib import Path

import pytest
from hosts import Hosts, unavailable

CHECKOUT = Path(__file__).resolve().parents[2]
CLUSTER = """
name: two
accelerator: ascend
metrics: {address: 0.0.0.0}
hosts: [{address: h0}, {address: h1}]
"""


@pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))
def test_each_host_is_asked_what_it_has(tmp_path: Path) -> None:
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text(CLUSTER)
    words = [
        sys.executable,
        "-P",
        "-m",
        "launcher.cli",
        "ranktable",
        "generate",
        "--discover",
        "--cluster",
        str(cluster),
    ]
    with Hosts(2) as hosts:
        answer = hosts.run("h0", words, env={"PYTHONPATH": str(CHECKOUT)})
        hosts.cut("h1")
        cut = hosts.run("h0", words, env={"PYTHONPATH": str(CHECKOUT)})
    lines = answer.stderr.splitlines()
    assert (answer.returncode, answer.stdout) == (2, "")
    assert [line.partition(" (")[0] for line in lines] == ["h0: no /dev/davinci*", "h1: no /dev/davinci*"]
    assert cut.returncode == 2 and "h1: ssh: connect to host h1" in cut.stderr
