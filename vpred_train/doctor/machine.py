"""Checks the machine itself: software, device, start, number formats."""

import platform
from collections.abc import Callable, Sequence
from functools import partial
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
from mindspore import Tensor, float32, hal
from mindspore._c_expression import MSContext

from launcher.contract.accelerators import ComputeDtype
from launcher.contract.chips import first_generation, is_first_generation
from launcher.contract.environment import environment
from vpred_train import runtime
from vpred_train.arrays import FloatArray
from vpred_train.doctor.check import Item, Measured, left_out
from vpred_train.doctor.comparison import rounded
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_host
from vpred_train.models.layers import COMPUTE_DTYPES, Conv2d, Linear

MINDSPORE = "2.10."
START_S = 60.0
DRIVER = Path("/usr/local/Ascend/driver")
LEAST_MEMORY_SHARE = 0.95  # of the other ranks' device
JUST_ABOVE_ONE = 1 + 2.0**-12  # HF32 has 11 bits of mantissa and rounds it to 1
_INSTALL = "install the same on every host"


def software(station: Station) -> Sequence[Item]:
    """List versions of what a step runs on, which must be equal on all ranks."""
    return [
        Item("python and packages", packages, f"{_INSTALL}: pip install '.[train]'"),
        Item("CANN and driver", partial(cann, station), f"{_INSTALL}: driver, toolkit and kernels of one release"),
        Item("device", partial(device, station), "take NPUs of Atlas A2 or A3, the same model everywhere"),
        Item("memory", partial(memory, station), "look for other programs on this device: npu-smi info"),
    ]


def packages() -> Measured:
    """Compare the versions of Python and of the packages that compute and communicate."""
    names = ("mindspore", "mpi4py", "numpy")
    found = {name: _version(name) for name in names}
    text = ", ".join([f"python {platform.python_version()}", *(f"{name} {version}" for name, version in found.items())])
    right = found["mindspore"].startswith(MINDSPORE)
    return Measured(text, "ok" if right else "failed", f"mindspore {MINDSPORE}*", same=text)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def cann(station: Station) -> Measured:
    """Report the versions of CANN and of the driver, which their files version.info hold."""
    if station.on_cpu:
        return left_out("not needed on cpu")
    home = environment().get("ASCEND_HOME_PATH")
    if home is None:
        return Measured("ASCEND_HOME_PATH is not set: source CANN's set_env.sh", "failed", "a version of CANN")
    found = f"CANN {_version_in(Path(home) / 'compiler')}, driver {_version_in(DRIVER)}"
    return Measured(found, same=found)


def _version_in(folder: Path) -> str:
    file = folder / "version.info"
    lines = file.read_text().splitlines() if file.is_file() else []
    named = (line.partition("=") for line in lines)
    return next((value.strip() for name, _, value in named if name.strip().lower() == "version"), "unknown")


def device(station: Station) -> Measured:
    """Name the device. Processors may differ between hosts, NPUs may not."""
    if station.on_cpu:
        return Measured(
            f"{_processor()}, {len(psutil.Process().cpu_affinity())} cores for {station.identity.local_size} rank(s)"
        )
    soc = MSContext.get_instance().get_ascend_soc_version()
    name = hal.get_device_name(station.device_id)
    for found in (soc, name):
        if is_first_generation(found):
            return Measured(first_generation(found), "failed", "Atlas A2 or A3")
    return Measured(f"{name} ({soc})", same=f"{name} ({soc})")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def memory(station: Station) -> Measured:
    """Report the memory of the device. On cpu it is the host's, which hosts may have more or less of."""
    size_bytes = memory_bytes(station)
    return Measured(
        f"{size_bytes / 1e9:.1f} GB",
        figure=size_bytes / 1e9,
        unit="GB",
        least_share=0.0 if station.on_cpu else LEAST_MEMORY_SHARE,
    )


def memory_bytes(station: Station) -> int:
    """Return the memory of this rank's device, or of its host on cpu."""
    if station.on_cpu:
        return int(psutil.virtual_memory().total)
    return int(hal.get_device_properties(station.device_id).total_memory)


def start(station: Station) -> Sequence[Item]:
    """Report how long the start took."""
    remedy = "HCCL's codes: docs/troubleshooting.md; EI0006 and EI0015: a rank or a port is missing"
    return [Item("MindSpore and the collective", partial(_start, station), remedy)]


def _start(station: Station) -> Measured:
    late = not station.on_cpu and station.start_s > START_S
    return Measured(
        f"{station.start_s:.1f} s, {station.identity.world_size} rank(s) by {station.backend}",
        "failed" if late else "ok",
        "" if station.on_cpu else f"< {START_S:.0f} s",
        station.start_s,
        "s",
    )


def formats(station: Station) -> Sequence[Item]:
    """List what the number formats of the accelerator must do."""
    hf32 = "conv_allow_hf32(False) and matmul_allow_hf32(False) of device_context.ascend.op_precision"
    return [
        Item("float16 overflows to infinity", partial(overflow, station), "MS_ASCEND_CHECK_OVERFLOW_MODE=INFNAN_MODE"),
        Item("bfloat16 keeps its values", partial(brain_float, station), "bfloat16 needs Atlas A2 or later"),
        Item("float32 convolution keeps 12 bits", partial(keeps_bits, convolved), hf32),
        Item("float32 product keeps 12 bits", partial(keeps_bits, multiplied), hf32),
    ]


def overflow(station: Station) -> Measured:
    """Try whether float16 becomes infinite, which dynamic loss scaling needs."""
    if "float16" not in station.accelerator.compute_dtypes:
        return left_out("not a dtype of this accelerator")
    saturates = runtime.float16_saturates()
    found = "65504 + 65504 is 65504" if saturates else "65504 + 65504 is inf"
    return Measured(found, "failed" if saturates else "ok", "inf")


def brain_float(station: Station) -> Measured:
    """Convert values that bfloat16 holds exactly to it and back."""
    dtype: ComputeDtype = "bfloat16"
    if dtype not in station.accelerator.compute_dtypes:
        return left_out("not a dtype of this accelerator")
    values = rounded(np.random.default_rng(0).standard_normal(4096).astype(np.float32), dtype)
    back = to_host(Tensor(values).astype(COMPUTE_DTYPES[dtype]).astype(float32))
    wrong = int((back != values).sum())
    return Measured(f"{wrong} of {values.size} values differ", "failed" if wrong else "ok", "exact")


def keeps_bits(pass_on: Callable[[FloatArray], FloatArray]) -> Measured:
    """Try whether a float32 operation that should pass values on keeps 1 + 2^-12."""
    found = pass_on(np.full((1, 16, 4, 4), JUST_ABOVE_ONE, np.float32))
    kept = bool((found == np.float32(JUST_ABOVE_ONE)).all())
    return Measured(f"1 + 2^-12 becomes 1 + {float(found.min()) - 1:.3g}", "ok" if kept else "failed", "exact")


def convolved(x: FloatArray) -> FloatArray:
    """Apply a 1 x 1 convolution with the identity."""
    cell = Conv2d(np.random.default_rng(0), 16, 16, 1, matrix=np.eye(16, dtype=np.float32))
    cell.bias.set_data(Tensor(np.zeros(16, np.float32)))
    return to_host(cell(Tensor(x)))


def multiplied(x: FloatArray) -> FloatArray:
    """Multiply by the identity."""
    cell = Linear(np.random.default_rng(0), 16, 16, bias=False)
    cell.weight.set_data(Tensor(np.eye(16, dtype=np.float32)))
    return to_host(cell(Tensor(x.reshape(-1, 16))))
