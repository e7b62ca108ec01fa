"""One contract for every collective, run as real jobs; and the flat space by itself."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from launcher.mpirun import ROOT_VARIABLES, find_mpirun
from vpred_train.flat import FlatArrays, bounds_of

RANK = Path(__file__).with_name("collective_rank.py")


def job(ranks: int, kind: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
    mpirun = find_mpirun(None, os.environ)
    argv = [str(mpirun.path), "-np", str(ranks), *mpirun.dialect.oversubscribe, "--bind-to", "none"]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    argv += [sys.executable, str(RANK), kind, str(timeout_s)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=90, env=env)


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_contract_holds_over_mpi(ranks: int) -> None:
    answer = job(ranks, "mpi4py")
    assert (answer.returncode, answer.stdout.split()) == (0, ["done"] * ranks), answer.stdout + answer.stderr


def test_the_contract_holds_in_a_single_process() -> None:
    answer = subprocess.run([sys.executable, str(RANK), "single", "1"], capture_output=True, text=True, timeout=90)
    assert (answer.returncode, answer.stdout) == (0, "done\n"), answer.stdout + answer.stderr


def test_a_peer_that_does_not_answer_ends_the_job() -> None:
    started = time.monotonic()
    answer = job(2, "hang", timeout_s=2.0)
    assert answer.returncode != 0
    assert time.monotonic() - started < 30  # not the 60 s that the other rank sleeps
    assert "rank 0: the other ranks did not answer within 2 s" in answer.stderr
    assert "in barrier" in answer.stderr  # where it waited


def test_flat_arrays_are_read_across_their_parts() -> None:
    whole = np.arange(20, dtype=np.float32)
    flat = FlatArrays(np.split(whole.copy(), [3, 3, 11]))
    for start in range(20):
        for stop in range(start + 1, 21):
            np.testing.assert_array_equal(flat[start:stop], whole[start:stop])
    assert np.shares_memory(flat[4:9], flat.arrays[2])
    flat.add_(FlatArrays(np.split(whole, [3, 3, 11])))
    np.testing.assert_array_equal(flat[0:20], 2 * whole)


@pytest.mark.parametrize(("size", "world_size"), [(10, 3), (2, 4), (0, 2), (1_000_003, 7)])
def test_bounds_share_everything_out_evenly(size: int, world_size: int) -> None:
    lengths = np.diff(bounds_of(size, world_size))
    assert lengths.sum() == size and len(lengths) == world_size
    assert lengths.max() - lengths.min() <= 1
