"""Faults on several hosts: who is blamed, how soon, what is left running, and that the run goes on.

The deadlines are far above what a fault takes, so that only one that goes unnoticed breaks them.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.contract.run_dir import RankStatus, RunDir, Summary
from launcher.records.attempt_record import AttemptRecord, read_records
from support import CHECKOUT
from support.hosts import Hosts, unavailable

FAKE_LAUNCH = CHECKOUT / "tests" / "launcher" / "fake_launch.py"
NOTICED_S = 45.0
BOTH, WITH_SPARE = ("h0", "h1"), ("h0", "h2")
CLUSTER = """
name: three
accelerator: cpu
workers_per_host: 1
hosts: [{address: h0}, {address: h1}]
launcher: {allow_run_as_root: true, forward_variables: [PYTHONPATH], lease_s: 4}
metrics: {address: "::"}
restart: {max_restarts: 2, first_delay_s: 0.1, spare_hosts: [{address: h2}]}
supervision: {timeouts: {step_s: 5}}
"""

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


class Launch:
    """The fake trainer on h0 and h1, launched from h0."""

    def __init__(self, hosts: Hosts, folder: Path) -> None:
        self.hosts, self.run = hosts, RunDir(folder / "run")
        (folder / "cluster.yaml").write_text(CLUSTER)
        (folder / "recipe.yaml").write_text("steps: 20\nstep_s: 0.1\nfault: none\n")
        self.argv = [sys.executable, "-P", str(FAKE_LAUNCH), "run", "--cluster", str(folder / "cluster.yaml")]
        self.argv += ["--recipe", str(folder / "recipe.yaml"), "--run-dir", str(self.run.root)]

    def start(self) -> None:
        """Start it and return when both ranks have a checkpoint behind them."""
        self.process = self.hosts.start(
            "h0",
            self.argv,
            env={"PYTHONPATH": str(CHECKOUT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.await_checkpoint(attempt=1)

    def await_checkpoint(self, attempt: int) -> None:
        """Return when both ranks have a checkpoint of this attempt behind them."""
        files = [self.run.attempt(attempt).status(rank) for rank in (0, 1)]
        deadline_s = time.monotonic() + NOTICED_S
        while not all((status := RankStatus.read(file)) and _has_saved(status) for file in files):
            assert self.process.poll() is None, self.process.communicate()[0]
            assert time.monotonic() < deadline_s, "waited too long"
            time.sleep(0.05)

    def end(self) -> tuple[int, str, list[AttemptRecord]]:
        output, _ = self.process.communicate(timeout=2 * NOTICED_S)
        return self.process.returncode, output, read_records(self.run)

    def workers(self) -> dict[int, str]:
        """Ranks and MPI daemons on hosts that are up."""
        living = [name for name in self.hosts.names if name in self.hosts._inits]
        found: dict[int, str] = {}
        for name in living:
            for word in (str(self.run.root), "prted"):
                found |= self.hosts.processes(name, word)
        return found

    def victim(self, host: str) -> int:
        """The trainer's pid on `host`, as seen from outside."""
        found = self.hosts.processes(host, "fake_trainer.py")
        return next(pid for pid, line in found.items() if "launcher.rank.shim" not in line and "mpirun" not in line)


def _has_saved(status: RankStatus) -> bool:
    return (status.checkpoint_step or 0) > (status.resumed_step or 0)


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(3) as made:
        yield made


@pytest.fixture
def launch(hosts: Hosts, tmp_path: Path) -> Iterator[Launch]:
    made = Launch(hosts, tmp_path)
    yield made
    if made.process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(hosts.pid_of(made.process), signal.SIGKILL)
        made.process.communicate()


def recovered(launch: Launch, *hosts: tuple[str, ...]) -> str:
    """The run ended well after attempts on `hosts`, each from where the last one was; nothing runs, on any host."""
    code, output, records = launch.end()
    assert code == 0, output
    assert [record.hosts for record in records] == list(hosts), output
    for before, after in pairwise(records):
        assert before.detection_s < NOTICED_S
        assert after.resumed_step == before.checkpoint_step > before.resumed_step
    assert Summary.read(launch.run.summary_json) is not None
    deadline_s = time.monotonic() + NOTICED_S
    while left := launch.workers():
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)
    return output


def test_a_host_with_two_failed_ranks_gives_its_place_to_the_spare_one(launch: Launch) -> None:
    launch.start()
    os.kill(launch.victim("h1"), signal.SIGKILL)
    launch.await_checkpoint(attempt=2)
    os.kill(launch.victim("h1"), signal.SIGSTOP)
    output = recovered(launch, BOTH, BOTH, WITH_SPARE)
    assert "rank 1 on host h1 ended with SIGKILL" in output
    assert "rank 1 on host h1 made no progress" in output


def test_a_host_whose_connection_is_killed_is_blamed(launch: Launch, hosts: Hosts) -> None:
    """Not the launcher's own host, whose ranks mpirun then kills."""
    launch.start()
    (client,) = (pid for pid, line in hosts.processes("h0", "prted").items() if Path(line.split()[0]).name == "ssh")
    os.kill(client, signal.SIGKILL)
    assert "rank 1 on host h1 was lost with the way to its host" in recovered(launch, BOTH, BOTH)


def test_a_host_behind_a_cut_cable_gives_its_place_to_the_spare_one(launch: Launch, hosts: Hosts) -> None:
    """Its ranks end by themselves, before others start; it is cut off still."""
    launch.start()
    hosts.cut("h1")
    try:
        output = recovered(launch, BOTH, WITH_SPARE)
    finally:
        hosts.heal("h1")
    assert "rank 1 on host h1 " in output and "could not be cleared: h1" in output


def test_a_host_that_is_gone_gives_its_place_to_the_spare_one(launch: Launch, hosts: Hosts) -> None:
    launch.start()
    hosts.power_off("h1")
    try:
        assert "rank 1 on host h1 " in recovered(launch, BOTH, WITH_SPARE)
    finally:
        hosts.boot("h1")


def test_nothing_outlives_a_killed_launcher_on_any_host(launch: Launch, hosts: Hosts) -> None:
    launch.start()
    os.kill(hosts.pid_of(launch.process), signal.SIGKILL)
    launch.process.communicate()
    deadline_s = time.monotonic() + NOTICED_S
    while left := launch.workers():
        assert time.monotonic() < deadline_s, left
        time.sleep(0.1)
    assert RunDir(launch.run.root).last_attempt() == 1
