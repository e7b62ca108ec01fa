"""One contract for every collective, run as real jobs; and the flat space by itself."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS
from support.msrun import msrun
from vpred_train.distributed.flat_arrays import FlatArrays, bounds_of

RANK = PROGRAMS / "collective_rank.py"
LAUNCHES = ("launch", "ranks", "collective"), [
    ("alone", 1, "SingleProcess"),
    ("mpirun", 1, "Mpi"),
    ("mpirun", 2, "Mpi"),
    ("mpirun", 3, "Mpi"),
    ("msrun", 2, "Device"),
]  # fmt: skip


def job(launch: str, ranks: int, what: str, folder: Path, timeout_s: float = 60.0) -> tuple[int, str]:
    """Exit code and output of all ranks."""
    arguments = [str(RANK), what, str(timeout_s)]
    if launch == "msrun":
        code, logs = msrun(ranks, arguments, folder)
        return code, "".join(logs)
    argv = [sys.executable, *arguments]
    if launch == "mpirun":
        mpirun = find_mpirun(None, os.environ)
        argv = [str(mpirun.path), "-np", str(ranks), *mpirun.dialect.oversubscribe, "--bind-to", "none", *argv]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=90, env=env)
    return answer.returncode, answer.stdout + answer.stderr


@pytest.mark.parametrize(*LAUNCHES)
def test_the_contract_holds(launch: str, ranks: int, collective: str, tmp_path: Path) -> None:
    code, output = job(launch, ranks, "contract", tmp_path)
    assert (code, output.count(f"{collective} done")) == (0, ranks), output
    assert '"what"' not in output, output


@pytest.mark.parametrize("launch", ["mpirun", "msrun"])
def test_a_peer_that_does_not_answer_ends_the_job(launch: str, tmp_path: Path) -> None:
    code, output = job(launch, 2, "hang", tmp_path, timeout_s=2.0)
    assert code != 0
    assert "done" not in output
    assert "rank 0: the other ranks did not answer within 2 s" in output
    assert "in barrier" in output  # where it waited


def test_flat_arrays_are_read_across_their_parts() -> None:
    whole = np.arange(20, dtype=np.float32)
    flat = FlatArrays(np.split(whole.copy(), [3, 3, 11]))
    for start in range(20):
        for stop in range(start + 1, 21):
            np.testing.assert_array_equal(flat[start:stop], whole[start:stop])
    assert np.shares_memory(flat[4:9], flat.arrays[2])
    flat.add_(FlatArrays(np.split(whole, [3, 3, 11])))
    np.testing.assert_array_equal(flat[0:20], 2 * whole)
    part = flat.view(2, 13)
    np.testing.assert_array_equal(part[0:11], 2 * whole[2:13])
    part.add_(whole[2:13])
    np.testing.assert_array_equal(flat[0:20], np.r_[2 * whole[:2], 3 * whole[2:13], 2 * whole[13:]])
    part.set_(whole[2:13])
    np.testing.assert_array_equal(flat[0:20], np.r_[2 * whole[:2], whole[2:13], 2 * whole[13:]])
    assert flat.view(3, 3).size == 0


@pytest.mark.parametrize(("size", "world_size"), [(10, 3), (2, 4), (0, 2), (1_000_003, 7)])
def test_bounds_share_everything_out_evenly(size: int, world_size: int) -> None:
    lengths = np.diff(bounds_of(size, world_size))
    assert lengths.sum() == size and len(lengths) == world_size
    assert lengths.max() - lengths.min() <= 1
