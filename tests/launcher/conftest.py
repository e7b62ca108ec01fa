"""Fixtures: vpred-launch with the fake trainer as a real program, on free ports, ended afterwards."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.cluster.config import ClusterConfig
from launcher.contract.config import build_document
from launcher.contract.environment import environment
from launcher.contract.run_dir import RankStatus, RunDir
from launcher.processes.tied import workers_of
from support import CHECKOUT, PROGRAMS
from support.jobs import free_ports

FAKE_LAUNCH = PROGRAMS / "fake_launch.py"
DEADLINE_S = 60.0


def await_condition(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, "waited too long"
        time.sleep(0.02)


@pytest.fixture
def wait_until() -> Callable[[Callable[[], bool]], None]:
    """Wait for a condition, with a deadline."""
    return await_condition


class Bench:
    """Starts launches in `root`. Every condition is awaited with a deadline."""

    wait_until = staticmethod(await_condition)

    def __init__(self, root: Path) -> None:
        self.root = root
        self.recipe = root / "demo.yaml"
        self.recipe.write_text("steps: 6\n")
        self.run = RunDir(root / "run")
        self.port = free_ports(2)
        self.env = environment() | {"PYTHONPATH": str(CHECKOUT)}
        for name in list(self.env):
            # As for a user without them: the launcher itself must set what root needs.
            if name.startswith(("OMPI_", "PMIX_", "SLURM_")):
                del self.env[name]
        self._started: list[subprocess.Popen[str]] = []

    def argv(self, command: str, *options: str) -> list[str]:
        words = [sys.executable, "-P", str(FAKE_LAUNCH), command, "--recipe", str(self.recipe)]
        words += ["--run-dir", str(self.run.root), f"cluster.metrics.base_port={self.port}"]
        return [*words, *options]

    def launch(self, *options: str, command: str = "run") -> subprocess.CompletedProcess[str]:
        """Run to the end. A later option overrides those given here."""
        return subprocess.run(
            self.argv(command, *options),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            env=self.env,
            cwd=self.root,
            check=False,
        )

    def start(self, *options: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            self.argv("run", *options),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.env,
            cwd=self.root,
        )
        self._started.append(process)
        return process

    def start_training(self, *options: str) -> subprocess.Popen[str]:
        """Start a run that goes on for minutes and return when both ranks have made two steps."""
        process = self.start("steps=100000", "step_s=0.01", *options)
        statuses = [self.run.attempt(1).status(rank) for rank in (0, 1)]

        def is_training() -> bool:
            assert process.poll() is None, process.communicate()
            records = [RankStatus.read(path) for path in statuses]
            return all(record is not None and record.step >= 2 for record in records)

        self.wait_until(is_training)
        return process

    def workers(self) -> list[int]:
        """mpirun, shims and trainers of the run, as the process table has them."""
        return workers_of(self.run.root, 1)

    def child_of(self, parent_pid: int) -> int:
        """The worker process whose parent is `parent_pid`."""
        children = [
            pid
            for pid in self.workers()
            if int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) == parent_pid
        ]
        assert len(children) == 1, children
        return children[0]

    def close(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            process.communicate()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


@pytest.fixture(scope="session")
def cluster() -> Callable[..., ClusterConfig]:
    """Makes cluster configurations; see a_cluster."""
    return a_cluster


def a_cluster(hosts: int = 3, each: int = 2, **restart) -> ClusterConfig:
    """Hosts n1, n2 ... with `each` workers, spare hosts s1, s2 ..."""
    spare = [{"address": f"s{number}"} for number in range(1, restart.pop("spare", 0) + 1)]
    raw = {
        "name": "test",
        "accelerator": "cpu",
        "workers_per_host": each,
        "hosts": [{"address": f"n{number}"} for number in range(1, hosts + 1)],
        "metrics": {"address": "::"},
        "restart": {"max_restarts": 10, "spare_hosts": spare, **restart},
    }
    return build_document(ClusterConfig, raw, Path("cluster.yaml"))
