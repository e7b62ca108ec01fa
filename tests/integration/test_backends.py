"""Every kind of launcher on real processes: both Open MPIs and msrun, on one host and between two."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest

from launcher.contract.run_dir import Outcome, RunDir
from launcher.planning.mpirun import find_mpirun
from launcher.records.attempt_record import read_records
from support import CHECKOUT
from support.hosts import Hosts, unavailable
from support.jobs import DEADLINE_S, SMALL_RECIPE, free_ports, lend_graphs, losses, wait_until, write_images

STEPS, STEPS_PER_CHECKPOINT = 40, 10
LENGTH = [f"total_samples={4 * STEPS}", f"checkpoint.every_samples={4 * STEPS_PER_CHECKPOINT}", "final_samples=0"]
# Ranks and their scheduler ask each other again after a second, not after three to five.
QUICK_MEETING = "{MS_RETRY_INTERVAL_LOWER: '1', MS_RETRY_INTERVAL_UPPER: '1'}"
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
    argv = [sys.executable, "-P", "-m", "vpred_train", "--recipe", str(folder / "recipe.yaml"), *LENGTH]
    subprocess.run([*argv, "--run-dir", str(folder / "run")], cwd=folder, check=True, timeout=DEADLINE_S)
    return losses(folder / "run")


@pytest.fixture(scope="module")
def under_msrun(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of two ranks under msrun on this host."""
    folder = tmp_path_factory.mktemp("msrun")
    launch_here(folder, "cluster.launcher.kind=msrun")
    return RunDir(folder / "run")


@pytest.fixture(scope="module")
def over_ssh(hosts: Hosts, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A run of one rank on each of two hosts, under mpirun."""
    folder = tmp_path_factory.mktemp("ssh")
    (folder / "recipe.yaml").write_text(SMALL_RECIPE)
    answer = launch(hosts, folder, ["-m", "launcher.cli"], *LENGTH)
    assert answer.returncode == 0, answer.stderr
    return RunDir(folder / "run")


def launch_here(folder: Path, *options: str) -> None:
    """A run of two ranks that meet through MindSpore's scheduler."""
    (folder / "recipe.yaml").write_text(SMALL_RECIPE)
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--recipe", str(folder / "recipe.yaml")]
    ports = free_ports(3)
    argv += [f"cluster.metrics.base_port={ports}", f"cluster.network.scheduler_port={ports + 2}"]
    argv += ["--run-dir", str(folder / "run"), f"cluster.environment={QUICK_MEETING}", *LENGTH, *options]
    env = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    answer = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert answer.returncode == 0, answer.stderr


def launch(hosts: Hosts, folder: Path, program: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """`run` on h0 for both hosts, without what a login on h1 would not have."""
    return hosts.run("h0", launch_argv(folder, program, *options), DEADLINE_S, {"PYTHONPATH": str(CHECKOUT)})


def launch_argv(folder: Path, program: list[str], *options: str) -> list[str]:
    (folder / "cluster.yaml").write_text(CLUSTER)
    argv = [sys.executable, "-P", *program, "run", "--cluster", str(folder / "cluster.yaml")]
    return [*argv, "--recipe", str(folder / "recipe.yaml"), "--run-dir", str(folder / "run"), *options]


def whereabouts(run: RunDir, attempt: int = 1) -> dict[int, tuple[str, int]]:
    """Rank -> host and return code."""
    found = [Outcome.read(run.attempt(attempt).outcome(rank)) for rank in (0, 1)]
    return {each.rank: (each.hostname, each.returncode) for each in found if each is not None}


def test_msrun_and_mccl_train_like_one_process(under_msrun: RunDir, alone: list[float]) -> None:
    assert len(alone) == STEPS
    np.testing.assert_allclose(losses(under_msrun.root), alone, rtol=0, atol=1e-5)


def test_ranks_without_msrun_and_mpi_train_like_those_under_msrun(tmp_path: Path, under_msrun: RunDir) -> None:
    lend_graphs(under_msrun.root, tmp_path / "run")
    launch_here(tmp_path, "cluster.launcher.kind=local")
    assert losses(tmp_path / "run") == losses(under_msrun.root)


@needs_hosts
def test_msrun_on_two_hosts_trains_like_on_one(hosts: Hosts, tmp_path: Path, under_msrun: RunDir) -> None:
    """But for rounding: a rank that shares its host with none has more cores, and sums in more threads."""
    lend_graphs(under_msrun.root, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    options = ["cluster.launcher.kind=msrun", f"cluster.environment={QUICK_MEETING}", *LENGTH]
    answer = launch(hosts, tmp_path, ["-m", "launcher.cli"], *options)
    assert answer.returncode == 0, answer.stderr
    assert whereabouts(RunDir(tmp_path / "run")) == {0: ("h0", 0), 1: ("h1", 0)}
    np.testing.assert_allclose(losses(tmp_path / "run"), losses(under_msrun.root), rtol=1e-6, atol=0)


@needs_hosts
def test_two_hosts_train_like_one_process(over_ssh: RunDir, alone: list[float]) -> None:
    assert whereabouts(over_ssh) == {0: ("h0", 0), 1: ("h1", 0)}
    np.testing.assert_allclose(losses(over_ssh.root), alone, rtol=0, atol=1e-5)


@needs_hosts
def test_a_run_that_lost_a_host_ends_as_if_undisturbed_on_the_other(
    hosts: Hosts, tmp_path: Path, over_ssh: RunDir
) -> None:
    run = RunDir(tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)
    lend_graphs(over_ssh.root, run.root)
    policy = "{max_restarts: 1, first_delay_s: 0.1, shrink: true, exclude_host_after: 1}"
    argv = launch_argv(tmp_path, ["-m", "launcher.cli"], *LENGTH, f"cluster.restart={policy}")
    output = (tmp_path / "output").open("w+")
    process = hosts.start("h0", argv, env={"PYTHONPATH": str(CHECKOUT)}, stdout=output, stderr=output, text=True)
    wait_until(lambda: run.committed_step() > 0 and len(losses(run.root)) > STEPS_PER_CHECKPOINT, process)
    for pid, line in hosts.processes("h1", "vpred_train").items():
        if "launcher.rank.shim" not in line:
            os.kill(pid, signal.SIGKILL)
    assert process.wait(DEADLINE_S) == 0, (tmp_path / "output").read_text()
    first, second = read_records(run)
    assert (first.hosts, first.host, second.hosts) == (("h0", "h1"), "h1", ("h0",))
    assert first.world_size == 2 and second.world_size == 1
    assert STEPS_PER_CHECKPOINT <= second.resumed_step <= first.last_step < second.last_step == STEPS
    np.testing.assert_allclose(losses(run.root), losses(over_ssh.root), rtol=1e-6, atol=0)


@pytest.fixture(scope="module")
def mpich(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MPICH, unpacked from its wheel."""
    folder = tmp_path_factory.mktemp("mpich")
    lock = Path(__file__).with_name("mpich.lock")
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    argv += ["--only-binary", ":all:", "--require-hashes", "--dest", str(folder), "--requirement", str(lock)]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S)
    if answer.returncode != 0:
        pytest.skip(f"needs MPICH's wheel from PyPI: {answer.stderr.strip().splitlines()[-1]}")
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        archive.extractall(folder)
    (root,) = folder.glob("mpich-*.data/data")
    for program in (root / "bin").iterdir():
        program.chmod(0o755)
    return root


@pytest.mark.parametrize(("fault", "code", "told"), [("none", 0, ""), ("kill", 137, "ended with SIGKILL after step 3")])
def test_mpich_starts_ranks_on_one_host(mpich: Path, tmp_path: Path, fault: str, code: int, told: str) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    argv = [sys.executable, "-P", str(FAKE_LAUNCH), "run", "--recipe", str(tmp_path / "recipe.yaml")]
    argv += ["--run-dir", str(tmp_path / "run"), f"cluster.launcher.mpirun={mpich / 'bin' / 'mpirun'}"]
    argv += [f"cluster.metrics.base_port={free_ports(2)}", f"fault={fault}"]
    env = os.environ | {"PYTHONPATH": str(CHECKOUT), "MPI4PY_LIBMPI": str(mpich / "lib" / "libmpi.so.12")}
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert answer.returncode == code, answer.stderr
    assert told in answer.stderr
    assert f"started by     {mpich / 'bin' / 'mpirun'} (MPICH 5.0.2)" in answer.stdout
    ends = {rank: each for rank, (_, each) in whereabouts(RunDir(tmp_path / "run")).items()}
    assert (ends == {0: 0, 1: 0}) if code == 0 else (ends[1] == -signal.SIGKILL)


@needs_hosts
@pytest.mark.skipif(DEBIANS is None, reason="needs Debian's Open MPI 4 (apt-get install openmpi-bin)")
def test_open_mpi_4_starts_ranks_on_two_hosts(hosts: Hosts, tmp_path: Path) -> None:
    mpirun = Path(str(DEBIANS))
    assert find_mpirun(mpirun, os.environ).version[0] == 4
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    answer = launch(hosts, tmp_path, [str(FAKE_LAUNCH)], f"cluster.launcher.mpirun={mpirun}")
    assert answer.returncode == 0, answer.stderr
    assert whereabouts(RunDir(tmp_path / "run")) == {0: ("h0", 0), 1: ("h1", 0)}


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
        ("mpi0", "started 2 ranks, which did not reach each other in 8 s"),  # as behind a firewall: silence
        ("eth9", "failed: Exception: MPI_ERR_INTERN: internal error"),
    ],
)
def test_ranks_that_do_not_reach_each_other_are_found_before_the_run(
    hosts: Hosts, tmp_path: Path, interface: str, found: str
) -> None:
    (tmp_path / "recipe.yaml").write_text("steps: 6\n")
    for number, name in enumerate(hosts.names):  # a card whose packets are lost without a word
        hosts.run(name, ["sh", "-ec", DEAD_CARD.format(own=number, other=1 - number)]).check_returncode()
    options = [f"cluster.network.interface={interface}", "cluster.preflight.mpi_timeout_s=8"]
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
