"""The same under a real mpirun: a rank dies with -9 around the commit, and mpirun ends the others."""

import os
import subprocess
import sys

import numpy as np
import pytest

from checkpoints_mgr import CheckpointManager, State
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS, PYTHONPATH


@pytest.mark.mpi
@pytest.mark.parametrize(
    ("spec", "step"),
    [
        ("write#0@rank1=kill", 20),
        ("fsync#2@rank0=kill", 20),
        ("rename#0@rank0=kill", 20),  # the commit itself
        ("sync_dir#2@rank0=kill", 30),  # right after it
        ("write#0@rank9=kill", 30),  # no such rank
    ],
)
def test_a_rank_killed_under_mpirun_leaves_the_old_or_the_new_step(tmp_path, names, spec, step):
    root = tmp_path / "root"
    mpirun = find_mpirun(None, os.environ)
    argv = [str(mpirun.path), "-np", "2", *mpirun.dialect.oversubscribe, "--bind-to", "none", sys.executable]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {}) | {"CKPT_FAILPOINTS": spec}
    env["PYTHONPATH"] = PYTHONPATH
    done = subprocess.run(
        [*argv, str(PROGRAMS / "mpi_rank.py"), str(root)],
        env=env,
        capture_output=True,
        timeout=120,
    )
    assert (done.returncode == 0) == ("rank9" in spec), done.stderr.decode()
    template = State({"model/w": np.zeros((50, 100), np.float32), "adam_m/w": np.zeros(10_000, np.float32)}, {})
    restored = CheckpointManager(root).restore(template)
    assert (restored.step, restored.state.progress) == (step, {"step": step})
    np.testing.assert_array_equal(template.whole["model/w"], np.float32(step))
    np.testing.assert_array_equal(template.whole["adam_m/w"], np.repeat(np.float32([step, step + 1]), 5000))
    CheckpointManager(root).save(40, template)
    assert names(root) == [f"step_{step:010d}", "step_0000000040"]
