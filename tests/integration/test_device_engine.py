"""Whole runs on the device engine: in one process, and on two ranks under msrun, of which one is killed."""

import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from launcher.contract.run_dir import RankStatus, RunDir
from launcher.records.attempt_record import read_records
from support.jobs import SMALL_RECIPE, end, free_ports, lend_graphs, losses, start, wait_until

STEPS, STEPS_PER_CHECKPOINT = 30, 10
LENGTH = [f"total_samples={4 * STEPS}", f"checkpoint.every_samples={4 * STEPS_PER_CHECKPOINT}", "final_samples=2"]
LOOKS = [
    "validation={every_samples: 40, count: 8}",
    "ema={profiles: [constant, power], snapshot_every_samples: 40, snapshot_dtype: float32}",
]
DEVICE = "cluster.engine=device"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(SMALL_RECIPE)
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path) -> RunDir:
    """A run of one process on the device engine."""
    return finished(recipe, "alone", 1, DEVICE)


def finished(recipe: Path, name: str, ranks: int, *options: str) -> RunDir:
    run = RunDir(recipe.parent / name)
    code, output = end(start(recipe, run.root, ranks, overrides=[*LENGTH, *LOOKS, *options]))
    assert code == 0, output
    return run


def under_msrun(recipe: Path, run: RunDir, *options: str) -> subprocess.Popen[str]:
    ports = free_ports(3)
    where = [DEVICE, "cluster.launcher.kind=msrun", f"cluster.network.scheduler_port={ports + 2}"]
    return start(recipe, run.root, 2, ports, [*LENGTH, *LOOKS, *where, *options])


def assert_close(found: RunDir, expected: RunDir) -> None:
    """Losses within 1e-6; exported weights and snapshots within 1e-5 of a file's largest value."""
    np.testing.assert_allclose(losses(found.root), losses(expected.root), rtol=1e-6)
    paths = [*expected.weights.glob("*.safetensors"), *expected.snapshots.rglob("*.safetensors")]
    assert len(paths) >= 4 + 2 * 3
    for path in paths:
        ours, theirs = load_file(found.root / path.relative_to(expected.root)), load_file(path)
        assert ours.keys() == theirs.keys()
        largest = max(float(np.abs(values).max()) for values in theirs.values())
        assert max(float(np.abs(ours[name] - values).max()) for name, values in theirs.items()) < 1e-5 * largest
    assert len(list(found.samples.glob("*.png"))) == 2


def test_one_process_does_what_the_host_engine_does(recipe: Path, alone: RunDir) -> None:
    host = finished(recipe, "host", 1)
    assert len(losses(host.root)) == STEPS
    assert_close(alone, host)


def test_a_run_under_msrun_that_lost_a_rank_ends_as_if_undisturbed(recipe: Path, alone: RunDir) -> None:
    undisturbed, run = RunDir(recipe.parent / "undisturbed"), RunDir(recipe.parent / "disturbed")
    code, output = end(under_msrun(recipe, undisturbed))
    assert code == 0, output
    assert_close(undisturbed, alone)

    lend_graphs(undisturbed.root, run.root)
    process = under_msrun(recipe, run, "cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=0.1")
    committed = run.manifest(STEPS_PER_CHECKPOINT)
    wait_until(lambda: committed.exists() and len(losses(run.root)) > STEPS_PER_CHECKPOINT, process)
    victim = RankStatus.read(run.attempt(1).status(1))
    assert victim is not None
    os.kill(victim.pid, signal.SIGKILL)
    code, output = end(process)
    assert code == 0, output
    assert re.search(r"restart 1 of 1 from step \d+", output)
    first, second = read_records(run)
    assert STEPS_PER_CHECKPOINT <= second.resumed_step <= first.last_step < second.last_step == STEPS
    assert losses(run.root) == losses(undisturbed.root)
    for path in undisturbed.weights.iterdir():
        assert (run.weights / path.name).read_bytes() == path.read_bytes()
