"""Ranks on unlike processors, without sharding: all update in one way, or the run ends before it saves anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoints_mgr import Checkpoint
from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS
from support.jobs import DEADLINE_S, SMALL_RECIPE, losses
from vpred_train.kernels import library

RANK = PROGRAMS / "unlike_rank.py"


@pytest.fixture
def train(tmp_path: Path):  # type: ignore[no-untyped-def]
    """train("agree" or "silent", zero_stage): the exit code, all output, and the run."""
    if not library.library_path().exists():
        pytest.skip(f"no compiled operations: {library.BUILD_COMMAND} says why")
    (tmp_path / "recipe.yaml").write_text(SMALL_RECIPE)

    def run(how: str, zero_stage: int) -> tuple[int, str, RunDir]:
        mpirun = find_mpirun(None, os.environ)
        argv = [str(mpirun.path), "-np", "2", *mpirun.dialect.oversubscribe, "--bind-to", "none", sys.executable, "-P"]
        argv += [str(RANK), how, "--recipe", str(tmp_path / "recipe.yaml"), "--run-dir", str(tmp_path / "run")]
        argv += ["final_samples=0", f"zero_stage={zero_stage}"]
        env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
        done = subprocess.run(argv, capture_output=True, text=True, timeout=DEADLINE_S, env=env, cwd=tmp_path)
        return done.returncode, done.stdout + done.stderr, RunDir(tmp_path / "run")

    return run


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_they_agree_on_how_to_update(train, zero_stage: int) -> None:  # type: ignore[no-untyped-def]
    code, output, run = train("agree", zero_stage)
    assert code == 0, output
    assert output.count("optimiser and averages go by numpy on all ranks: compiled operations differ: rank 0 on") == 1
    assert "rank 1 on" in output and library.BUILD_COMMAND in output
    assert len(losses(run.root)) == 4
    assert Checkpoint.open(run.manifest(4).parent).manifest.step == 4


def test_ranks_that_drift_apart_end_the_run(train) -> None:  # type: ignore[no-untyped-def]
    code, output, run = train("silent", 0)
    assert code == 1, output
    assert "cannot save step 2: rank 1 differs from rank 0 in " in output
    assert not list(run.checkpoints.glob("*"))
