"""Sets MindSpore's process-wide settings. Only this module calls set_context, set_device and init."""

import ctypes
import logging
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from launcher.contract.accelerators import ACCELERATORS, Accelerator
from launcher.contract.chips import logical_device, refuse_first_generation
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment, export
from launcher.contract.exit_codes import ExitCode
from launcher.contract.identity import Identity, is_scheduler, read_identity
from launcher.contract.process import die_with_parent
from vpred_train.config.precision import PrecisionConfig
from vpred_train.host_copies import to_host
from vpred_train.kernels import implementations, library

logger = logging.getLogger(__name__)


def identify() -> Identity:
    """Return this process's identity among the ranks. Raises ConfigError: when the environment's variables are bad.

    msrun also runs the ranks' command for one process that is no rank: the scheduler. That process stays here until the
    last rank has left, and ends.
    """
    env = environment()
    if is_scheduler(env):
        die_with_parent(os.getppid())
        init_communication()  # MindSpore ends the process inside this call, with its own exit code
        sys.exit(ExitCode.OK)
    return read_identity(env)


def own_device(identity: Identity, device_ids: str | None) -> int:
    """Return the number under which this process knows its device.

    device_ids: physical devices of all ranks, such as "0,1,0,1"; None means the local rank
    Raises ConfigError: when ASCEND_RT_VISIBLE_DEVICES hides the device.
    """
    if not device_ids:
        return identity.local_rank
    physical = physical_device(identity, device_ids)
    return logical_device(physical, environment().get("ASCEND_RT_VISIBLE_DEVICES"))


def physical_device(identity: Identity, device_ids: str | None) -> int:
    """Return the number that this rank's device has on its host, whatever this process calls it.

    device_ids: physical devices of all ranks, such as "0,1,0,1"; None means the local rank
    """
    return int(device_ids.split(",")[identity.rank]) if device_ids else identity.local_rank


def start(accelerator: Accelerator, identity: Identity, device_id: int, rank_table: Path | None) -> None:
    """Export the accelerator's variables, then import and set up MindSpore.

    Call it before any MindSpore import, since MindSpore reads the environment while it is imported.

    device_id: number of the device among those that the process sees
    """
    export(accelerator.environment(identity, device_id, rank_table))
    if not (accelerator.compiled_operations and library.load(_threads(identity))):
        export(accelerator.plain_variables)
        if accelerator.compiled_operations:
            logger.warning("no compiled operations for this processor; make them: %s", library.BUILD_COMMAND)
    import mindspore

    implementations.choose(accelerator.operations)
    mindspore.set_context(mode=mindspore.GRAPH_MODE)
    mindspore.set_device(accelerator.device_target, device_id)
    if accelerator.device_target == "CPU":
        # One actor thread: ranks, not threads, fill the cores.
        mindspore.set_context(runtime_num_threads=1)
    else:
        _set_up_ascend(accelerator)


def _set_up_ascend(accelerator: Accelerator) -> None:
    """Choose how graphs are compiled, and let kernels compute in the dtypes of their inputs.

    CANN computes float32 convolutions in HF32 by default, which keeps 11 bits of the mantissa. MindSpore accepts each
    setting of the precision once in a process.
    """
    import mindspore
    from mindspore.device_context.ascend import op_precision

    mindspore.set_context(jit_config={"jit_level": accelerator.operations.jit_level})
    if accelerator.deterministic:
        mindspore.set_deterministic(True)  # before the communication starts, which reads what this exports
    op_precision.precision_mode("must_keep_origin_dtype")
    op_precision.conv_allow_hf32(False)
    op_precision.matmul_allow_hf32(False)


def start_single(accelerator: str = "cpu") -> None:
    """Call `start` for a program that is no rank of a run: one process on device 0, whatever the environment says.

    A second call for the same accelerator does nothing.
    Raises KeyError: when no accelerator has that name.
    """
    _start_once(accelerator)


@cache
def _start_once(accelerator: str) -> None:
    if "mindspore" in sys.modules:
        logger.warning(
            "MindSpore is imported already, without our settings; call start_single() before any import of mindspore"
        )
    start(ACCELERATORS[accelerator], read_identity({}), 0, None)


@contextmanager
def compile_cache(folder: Path) -> Iterator[None]:
    """Let MindSpore read the graphs that are compiled inside the `with` block from `folder`, or store them there.

    Compile the same graphs in the same order each time: the cache distinguishes graphs by their order alone.
    Only the first block of a process has an effect on the folder.
    """
    import mindspore
    from mindspore.graph import api

    if not Path(api.entry_script_path).is_file():  # MindSpore reads it, but `python -c` has no such file
        api.entry_script_path = __file__
    mindspore.set_context(enable_compile_cache=True, compile_cache_path=str(folder))
    try:
        yield
    finally:
        mindspore.set_context(enable_compile_cache=False)


def give_back_memory() -> None:
    """Return freed heap to the system: compiling a graph leaves hundreds of MiB. Without glibc it does nothing."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def init_communication() -> None:
    """Connect to the other ranks through MindSpore: HCCL on Ascend, MCCL on CPU. MCCL needs msrun's environment."""
    from mindspore.communication import init

    init()


def device_memory() -> dict[str, int]:
    """Return the bytes of the device's memory by kind: allocated to tensors, reserved by the pool, and peak allocated.

    The dictionary is empty where MindSpore reports nothing, as on CPU.
    """
    from mindspore import runtime

    found = {
        "allocated": runtime.memory_allocated(),
        "reserved": runtime.memory_reserved(),
        "peak": runtime.max_memory_allocated(),
    }
    return found if found["reserved"] else {}


def require_known_chip(accelerator: Accelerator) -> None:
    """Raise ConfigError when the device is an Ascend 910 of the first generation."""
    if accelerator.device_target == "Ascend":
        from mindspore._c_expression import MSContext

        refuse_first_generation([MSContext.get_instance().get_ascend_soc_version()])


def require_overflow(precision: PrecisionConfig) -> None:
    """Raise ConfigError when dynamic loss scaling needs float16 overflows and the device never overflows.

    NPUs before Atlas A2 saturate instead, which nobody would notice.
    """
    if precision.dtype == "float16" and precision.loss_scaling == "dynamic" and float16_saturates():
        raise ConfigError(
            "precision.compute_dtype: found 'float16', which on this device saturates where it should overflow, so "
            "that no loss scale can be found; give float32"
        )


def float16_saturates() -> bool:
    """Return whether the device's float16 stops at its largest number instead of becoming infinite."""
    from mindspore import Tensor, float16

    largest = Tensor([65504.0], float16)
    return math.isfinite(float(to_host(largest + largest)[0]))


def _threads(identity: Identity) -> int:
    """Return this rank's share of the cores that the process may use."""
    return max(1, len(os.sched_getaffinity(0)) // identity.local_size)
