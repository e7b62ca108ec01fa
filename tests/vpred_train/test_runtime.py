"""One process without a launcher, started as other programs do it."""

import inspect
import subprocess
import sys
from typing import Any

import pytest

from launcher.contract.accelerators import accelerator_with
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.identity import read_identity

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


class Calls(list[tuple[str, Any]]):
    """Notes calls of functions of MindSpore, whose signatures they have to fit."""

    def stand_in(self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> None:
        signature = inspect.signature(getattr(module, name))

        def note(*arguments: Any, **settings: Any) -> None:
            bound = signature.bind(*arguments, **settings).arguments
            self.append((name, bound.get("kwargs") or tuple(bound.values())))

        monkeypatch.setattr(module, name, note)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Everything that a start says to MindSpore; it stays on CPU."""
    import mindspore
    from mindspore.device_context.ascend import op_precision

    from vpred_train import runtime
    from vpred_train.kernels import implementations

    noted = Calls()
    for name in ("set_context", "set_device", "set_deterministic"):
        noted.stand_in(monkeypatch, mindspore, name)
    for name in ("precision_mode", "conv_allow_hf32", "matmul_allow_hf32"):
        noted.stand_in(monkeypatch, op_precision, name)
    monkeypatch.setattr(runtime, "export", lambda variables: noted.append(("export", dict(variables))))
    monkeypatch.setattr(implementations, "_chosen", implementations.chosen())
    return noted


def test_a_start_on_ascend_keeps_float32_and_hides_no_fallback(calls: Calls) -> None:
    from vpred_train import runtime
    from vpred_train.kernels import implementations

    accelerator = accelerator_with("ascend", operations={"attention": "composed"})
    runtime.start(accelerator, read_identity({}), 3, None)
    assert calls[0][0] == "export"
    variables = calls[0][1]
    assert variables["MS_DISABLE_KERNEL_BACKOFF"] == "1"
    assert variables["MS_ASCEND_CHECK_OVERFLOW_MODE"] == "INFNAN_MODE"
    assert variables["DEVICE_ID"] == "3"
    assert ("set_device", ("Ascend", 3)) in calls
    assert ("set_context", {"jit_config": {"jit_level": "O0"}}) in calls
    assert calls[-3:] == [
        ("precision_mode", ("must_keep_origin_dtype",)),
        ("conv_allow_hf32", (False,)),
        ("matmul_allow_hf32", (False,)),
    ]
    assert "set_deterministic" not in dict(calls)
    assert (implementations.chosen().attention, implementations.chosen().convolution) == ("composed", "mint")


def test_a_deterministic_start_fuses_as_it_is_told(calls: Calls) -> None:
    from vpred_train import runtime

    accelerator = accelerator_with("ascend", operations={"jit_level": "O1"}, deterministic=True)
    runtime.start(accelerator, read_identity({}), 0, None)
    assert ("set_deterministic", (True,)) in calls
    assert ("set_context", {"jit_config": {"jit_level": "O1"}}) in calls


def test_a_start_on_cpu_touches_no_setting_of_ascend(calls: Calls) -> None:
    from vpred_train import runtime

    runtime.start(accelerator_with("cpu", deterministic=True), read_identity({}), 0, None)
    assert [name for name, _ in calls if name != "export"] == ["set_context", "set_device", "set_context"]


def test_a_device_of_the_first_generation_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from mindspore import _c_expression

    from vpred_train import runtime

    runtime.require_known_chip(accelerator_with("ascend"))  # without a device MindSpore names no chip

    class OldDevice:
        def get_ascend_soc_version(self) -> str:
            return "ascend910"

    class Context:
        get_instance = OldDevice

    monkeypatch.setattr(_c_expression, "MSContext", Context)
    runtime.require_known_chip(accelerator_with("cpu"))
    with pytest.raises(ConfigError, match="found ascend910, an Ascend 910 of the first generation"):
        runtime.require_known_chip(accelerator_with("ascend"))


def test_device_memory_is_what_mindspore_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    import mindspore

    from vpred_train import runtime

    assert runtime.device_memory() == {}  # on CPU
    for name, size in (("memory_allocated", 5), ("memory_reserved", 8), ("max_memory_allocated", 7)):
        monkeypatch.setattr(mindspore.runtime, name, lambda size=size: size)
    assert runtime.device_memory() == {"allocated": 5, "reserved": 8, "peak": 7}
