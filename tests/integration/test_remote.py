"""The launcher's remote channel between real hosts, and what it says when there is no way through."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.processes.ssh import Answer, Ssh, Unreachable, is_here
from support import CHECKOUT, PYTHONPATH
from support.hosts import Hosts, unavailable

ASK = """
import json, sys
from launcher.processes.ssh import Ssh
answers = Ssh().run({host: sys.argv[3:] for host in sys.argv[2].split(",")}, float(sys.argv[1]))
print(json.dumps({host: [a.returncode, a.stdout, a.unreachable and str(a.unreachable)] for host, a in answers.items()}))
"""

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(3) as made:
        yield made


def ask(hosts: Hosts, names: str, argv: list[str], timeout_s: float = 10.0) -> dict[str, tuple[int | None, str, str]]:
    """What a process on h0 hears from the hosts `names`."""
    words = [sys.executable, "-P", "-c", ASK, str(timeout_s), names, *argv]
    answer = hosts.run("h0", words, env={"PYTHONPATH": str(CHECKOUT)})
    assert answer.returncode == 0, answer.stderr
    return {host: tuple(values) for host, values in json.loads(answer.stdout).items()}


def test_words_arrive_as_they_were_sent_on_this_host_and_on_others(hosts: Hosts) -> None:
    words = ["a b", "$HOME", "it's", '"', ";exit 9", ""]
    program = "import socket, sys; print(socket.gethostname(), sys.argv[1:]); sys.exit(3)"
    answers = ask(hosts, "h0,h1,h2", [sys.executable, "-c", program, *words])
    assert answers == {host: (3, f"{host} {words}\n", None) for host in ("h0", "h1", "h2")}


def test_hosts_are_asked_at_the_same_time(hosts: Hosts, tmp_path: Path) -> None:
    """Each waits until all have come."""
    meet = 'touch "$0/$(hostname)"; until [ "$(ls "$0" | wc -l)" = 3 ]; do sleep 0.05; done'
    answers = ask(hosts, "h0,h1,h2", ["sh", "-c", meet, str(tmp_path)], timeout_s=30)
    assert answers == dict.fromkeys(("h0", "h1", "h2"), (0, "", None))


def test_nothing_outlives_its_deadline(hosts: Hosts) -> None:
    answers = ask(hosts, "h0,h1,h2", ["sh", "-c", "trap '' TERM; echo here; while :; do sleep 0.3; done"], timeout_s=1)
    assert {host: code for host, (code, _, _) in answers.items()} == dict.fromkeys(("h0", "h1", "h2"))
    assert not any(hosts.processes(host, "echo here") for host in hosts.names)


def test_a_host_behind_a_cut_cable_is_unreachable_and_the_others_answer(hosts: Hosts) -> None:
    hosts.cut("h2")
    try:
        answers = ask(hosts, "h1,h2", ["true"])
    finally:
        hosts.heal("h2")
    assert answers["h1"] == (0, "", None)
    assert "Connection timed out" in answers["h2"][2] or "No route to host" in answers["h2"][2]


def test_an_unknown_host_key_and_a_name_that_nobody_knows(hosts: Hosts) -> None:
    hosts.run("h0", ["cp", str(hosts.folder / "known_hosts"), str(hosts.folder / "kept")])
    (hosts.folder / "known_hosts").write_text("")
    try:
        answers = ask(hosts, "h1,nowhere", ["true"])
    finally:
        (hosts.folder / "known_hosts").write_text((hosts.folder / "kept").read_text())
    assert answers["h1"][2] == "Host key verification failed.; compare and accept the host's key once: ssh h1"
    assert "write nowhere into /etc/hosts" in answers["nowhere"][2]


def test_a_crashed_host_boots_again(hosts: Hosts) -> None:
    hosts.power_off("h2")
    assert hosts.run("h1", ["ssh", "-o", "ConnectTimeout=1", "h2", "true"]).returncode == 255
    hosts.boot("h2")
    assert hosts.run("h1", ["ssh", "h2", "hostname"]).stdout == "h2\n"


def test_a_local_command_that_ends_with_255_is_no_lost_host() -> None:
    answer = Ssh().run({"localhost": ["sh", "-c", "exit 255"]}, 5)["localhost"]
    assert (answer.returncode, answer.unreachable) == (255, None)
    assert Answer("n", 255, "", "", over_ssh=True).unreachable == Unreachable("ssh gave no reason", "try `ssh n true`")


def test_a_killed_process_takes_its_hosts_along() -> None:
    program = "from support.hosts import Hosts\nwith Hosts(1) as h: print(h._init_pid('h0'), flush=True); input()"
    env = os.environ | {"PYTHONPATH": PYTHONPATH}
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    init = Path(f"/proc/{int(process.stdout.readline())}")
    process.kill()
    process.communicate()
    deadline_s = time.monotonic() + 60
    while init.exists():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_this_machine_knows_its_own_names() -> None:
    assert is_here("localhost") and is_here("127.0.0.1") and is_here("::1") and is_here(socket.gethostname())
    assert not is_here("192.0.2.1") and not is_here("no-such-host.invalid")
