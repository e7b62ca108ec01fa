"""One process without a launcher, started as other programs do it."""

import subprocess
import sys

import pytest

from launcher.contract.environment import environment

WARNING = "MindSpore is imported already"
TWICE = "from vpred_train import runtime\nruntime.start_single()\nruntime.start_single('cpu')\n"


def stderr_of(program: str, **variables: str) -> str:
    argv = [sys.executable, "-P", "-c", program]
    answer = subprocess.run(argv, capture_output=True, text=True, check=False, env=environment() | variables)
    assert answer.returncode == 0, answer.stderr
    return answer.stderr


def test_a_single_process_starts_whatever_the_environment_says() -> None:
    """Also as half of a job: these variables alone would be refused."""
    program = f"{TWICE}import mindspore as ms, os\nassert ms.get_context('device_target') == 'CPU'\n"
    program += "assert os.environ['OMP_NUM_THREADS'] == '1'\n"
    assert WARNING not in stderr_of(program, OMPI_COMM_WORLD_RANK="1", MS_ROLE="MS_SCHED", OMP_NUM_THREADS="3")


def test_a_start_that_comes_too_late_is_said() -> None:
    assert stderr_of(f"import mindspore\n{TWICE}").count(WARNING) == 1


def test_an_unknown_accelerator_is_a_mistake_of_the_program() -> None:
    from vpred_train import runtime

    with pytest.raises(KeyError, match="tpu"):
        runtime.start_single("tpu")
