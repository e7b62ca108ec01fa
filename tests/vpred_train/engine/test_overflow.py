"""Two real ranks, one of which overflows: both skip the same steps, and go on with the same weights."""

import json
import os
import re
import subprocess
import sys
from typing import Any

import pytest

from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun
from support import PROGRAMS, PYTHONPATH


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What the ranks say of each step."""
    mpirun = find_mpirun(None, os.environ)
    argv = [str(mpirun.path), "-np", "2", *mpirun.dialect.oversubscribe, "--bind-to", "none"]
    argv += [sys.executable, str(PROGRAMS / "overflow_rank.py")]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {}) | {"PYTHONPATH": PYTHONPATH}
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=240, env=env)
    assert answer.returncode == 0, answer.stderr
    # mpirun may put lines of both ranks into one.
    return [json.loads(record) for record in re.findall(r"\{[^{}]*\}", answer.stdout)]


@pytest.mark.parametrize("zero_stage", [0, 1])
def test_an_overflow_of_one_rank_is_one_of_all(lines: list[dict[str, Any]], zero_stage: int) -> None:
    first, second = (
        [line for line in lines if (line["rank"], line["zero_stage"]) == (rank, zero_stage)] for rank in (0, 1)
    )
    assert [{**line, "rank": 0} for line in second] == first
    assert [line["samples_seen"] for line in first] == [4 * number for number in range(1, 9)]
    assert [line["finite"] for line in first] == [True, False, False, True, True, True, True, True]
    assert [line["overflow"] for line in first] == [not line["finite"] for line in first]
    # Halved by each overflow, which starts the window of 2 updates anew.
    assert [line["loss_scale"] for line in first] == [1024, 1024, 512, 256, 256, 512, 512, 1024]
    weights = [line["weights"] for line in first]
    assert weights[0] == weights[1] == weights[2]
    assert len(set(weights)) == 6
