"""Every kind of launcher on real processes: both Open MPIs and msrun, on one host and between two."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hosts import Hosts, unavailable
from jobs import DEADLINE_S, SMALL_RECIPE, free_ports, losses, write_images

from launcher.contract.run_dir import Outcome, RunDir
from launcher.mpirun import find_mpirun

CHECKOUT = Path(__file__).resolve().parents[2]
FAKE_LAUNCH = CHECKOUT / "tests" / "launcher" / "fake_launch.py"
DEBIANS = shutil.which("mpirun.openmpi")
CLUSTER = """
name: two
accelerator: cpu
workers_per_host: 1
hosts: [{address: h0}, {address: h1}]
launcher: {allow_run_as_root: true, forward_variables: [PYTHONPATH]}
metrics: {address: 0.0.0.0}
preflight: {min_free_disk_bytes: 0}
"""
DEAD_CARD = """
ip link add mpi0 type veth peer name nowhere 2>/dev/null || exit 0
ip addr add 10.88.0.1{own}/24 dev mpi0
ip link set mpi0 up
ip link set nowhere up
ip neigh add 10.88.0.1{other} lladdr 02:00:00:00:00:01 dev mpi0
"""

needs_hosts = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    with Hosts(2) as made:
        yield made


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of one process without any launcher."""
    folder = tmp_path_factory.mktemp("alone")
    (folder / "recipe.yaml").write_text(SMALL_RECIPE)
    argv = [sys.executable, "-P", "-m", "vpred_train", "--recipe", str(folder / "recipe.yaml")]
    subprocess.run([*argv, "--run-dir", str(folder / "run")], cwd=folder, check=True, timeout=DEADLINE_S)
    return losses(folder / "run")


def launch(hosts: Hosts, folder: Path, program: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """`run` on h0 for both hosts, without what a login on h1 would not have."""
    (folder / "cluster.yaml").write_text(CLUSTER)
    argv = [sys.executable, "-P", *program, "run", "--cluster", str(folder / "cluster.yaml")]
    argv += ["--recipe", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"), *options]
    return hosts.run("h0", argv, timeout_s=DEADLINE_S, env={"PYTHONPATH": str(CHECKOUT)})


def whereabouts(folder: Path) -> dict[int, tuple[str, int]]:
    """Rank -> host and return code."""
    found = [Outcome.read(RunDir(folder / "run").attempt(1).outcome(rank)) for rank in (0, 1)]
    return {each.rank: (each.hostname, each.returncode) for each in found if each is not None}


def test_msrun_and_mccl_train_like_one_process(tmp_path: Path, alone: list[float]) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--recipe", str(tmp_path / "recipe.yaml")]
    argv += ["--run-dir", str(tmp_path / "run"), "cluster.launcher.kind=msrun"]
    ports = free_ports(3)
    argv += [f"cluster.metrics.base_port={ports}", f"cluster.network.scheduler_port={ports + 2}"]
    env = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    answer = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert answer.returncode == 0, answer.stderr
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=0, atol=1e-5)


@needs_hosts
def test_two_hosts_train_like_one_process(hosts: Hosts, tmp_path: Path, alone: list[float]) -> None:
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    answer = launch(hosts, tmp_path, ["-m", "launcher.cli"])
    assert answer.returncode == 0, answer.stderr
    assert whereabouts(tmp_path) == {0: ("h0", 0), 1: ("h1", 0)}
    np.testing.assert_allclose(losses(tmp_path / "run"), alone, rtol=0, atol=1e-5)


@needs_hosts
@pytest.mark.skipif(DEBIANS is None, reason="needs Debian's Open MPI 4 (apt-get install openmpi-bin)")
def test_open_mpi_4_starts_ranks_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    mpirun = Path(str(DEBIANS))
    assert find_mpirun(mpirun, os.environ).version[0] == 4
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    answer = launch(hosts, tmp_path, [str(FAKE_LAUNCH)], f"cluster.launcher.mpirun={mpirun}")
    assert answer.returncode == 0, answer.stderr
    assert whereabouts(tmp_path) == {0: ("h0", 0), 1: ("h1", 0)}


@needs_hosts
def test_the_preflight_names_the_host_and_the_remedy(hosts: Hosts, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    own = tmp_path / "own"
    own.mkdir()
    hosts.run("h1", ["mount", "-t", "tmpfs", "tmpfs", str(own)])
    ours = launch(hosts, tmp_path, [str(FAKE_LAUNCH)], "--run-dir", str(own / "run"))
    assert ours.returncode == 2
    line = f"error   run directory: h1 does not see {own / 'run'}; give a --run-dir that all hosts share"
    assert line in ours.stderr.splitlines()
    hosts.run("h1", ["umount", str(own)])

    hosts.cut("h1")
    lost = launch(hosts, tmp_path, [str(FAKE_LAUNCH)])
    hosts.heal("h1")
    assert lost.returncode == 2
    assert "error   reachability: h1: ssh: connect to host h1" in lost.stderr
    assert not (tmp_path / "run").exists()


@needs_hosts
@pytest.mark.parametrize(
    ("interface", "found"),
    [
        ("mpi0", "started 2 ranks, which did not reach each other in 3 s"),  # as behind a firewall: silence
        ("eth9", "failed: Exception: MPI_ERR_INTERN: internal error"),
    ],
)
def test_ranks_that_do_not_reach_each_other_are_found_before_the_run(
    hosts: Hosts, tmp_path: Path, interface: str, found: str
) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    for number, name in enumerate(hosts.names):  # a card whose packets are lost without a word
        hosts.run(name, ["sh", "-ec", DEAD_CARD.format(own=number, other=1 - number)]).check_returncode()
    options = [f"cluster.network.interface={interface}", "cluster.preflight.mpi_timeout_s=3"]
    answer = launch(hosts, tmp_path, [str(FAKE_LAUNCH)], *options)
    assert answer.returncode == 2
    (line,) = answer.stderr.splitlines()
    assert line.startswith("error   MPI: ") and f") {found}; let the hosts connect on any port, or name the" in line
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["cluster.yaml", "recipe.yaml"]
    assert [hosts.processes(name, "COMM_WORLD") for name in hosts.names] == [{}, {}]


@needs_hosts
def test_the_trainer_checks_the_recipe_on_each_host(hosts: Hosts, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 8)
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    hosts.run("h1", ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "images")])
    answer = launch(hosts, tmp_path, ["-m", "launcher.cli"], f"data.path={tmp_path / 'images'}")
    hosts.run("h1", ["umount", str(tmp_path / "images")])
    assert answer.returncode == 2
    line = f"error   recipe: h1: {tmp_path / 'images'}: "
    assert [each[: len(line)] for each in answer.stderr.splitlines()] == [line], answer.stderr
    assert answer.stderr.endswith("; make that host like this one, on which it passed\n")
