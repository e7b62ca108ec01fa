"""Recognises Ascend chips by their names, and numbers the devices that a process sees."""

import re
import subprocess
from collections.abc import Iterable

from launcher.contract.config import ConfigError

# Atlas 800 and 900 before A2. npu-smi and CANN name the chips 910A to 910PremiumA. "910B" without a digit is one of
# them, 910B1 to 910B4 are A2, 910_93xx is A3. MindSpore names the family, where "ascend910b" in small letters is A2.
# A3's npu-smi says only "Ascend910", so that this name of capital letter refuses nothing.
_FIRST_GENERATION = {"910A", "910B", "910ProA", "910ProB", "910PremiumA"}
_FIRST_GENERATION_FAMILY = "ascend910"
_REMEDY = "take Atlas A2 or later (910B1 to 910B4, 910_93xx)"
# npu-smi's table of devices: | NPU  Name | Health | ...
_DEVICE = re.compile(r"^\|\s*\d+\s+((?:Ascend)?\s?\d{3}\S*)\s*\|\s*[A-Za-z]+\s*\|", re.MULTILINE)
_SPAN = re.compile(r"(\d+)(?:-(\d+))?")
_TOOL_TIMEOUT_S = 20.0


def is_first_generation(name: str) -> bool:
    """Return whether a chip is an Ascend 910 of the first generation.

    It has no bfloat16 and no flash attention. Its float16 saturates, and its matrix unit has no float32.

    name: CANN's SoC name (Ascend910ProB), npu-smi's chip name (910ProB), or MindSpore's family (ascend910)
    """
    return name == _FIRST_GENERATION_FAMILY or name.removeprefix("Ascend").strip() in _FIRST_GENERATION


def chip_names(npu_smi: str) -> list[str]:
    """Return the chip names in the output of `npu-smi info`, one for each device."""
    return _DEVICE.findall(npu_smi)


def installed_chips() -> list[str]:
    """Ask npu-smi for this host's chips. The list is empty without npu-smi or when it fails."""
    try:
        answer = subprocess.run(
            ["npu-smi", "info"],  # noqa: S607  the driver's package puts it on PATH
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return chip_names(answer.stdout.decode(errors="replace"))


def refuse_first_generation(names: Iterable[str]) -> None:
    """Raise ConfigError for the first of `names` that is of the first generation."""
    if old := next(filter(is_first_generation, names), None):
        raise ConfigError(first_generation(old), _REMEDY)


def first_generation(name: str) -> str:
    """Say why a chip of the first generation is refused."""
    return f"accelerator ascend: found {name}, an Ascend 910 of the first generation, which is not supported"


def visible_devices(text: str) -> list[int]:
    """Return the physical ids that ASCEND_RT_VISIBLE_DEVICES lists, such as "4-6,1", in its order.

    CANN ignores all that follows a word that is no number.
    """
    seen: list[int] = []
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            break
        seen += range(int(match[1]), int(match[2] or match[1]) + 1)
    return seen


def logical_device(physical: int, visible: str | None) -> int:
    """Return the number under which this process knows a physical device.

    visible: value of ASCEND_RT_VISIBLE_DEVICES; without one the numbers are the same

    Raises ConfigError: when the variable hides the device.
    """
    if not visible:
        return physical
    seen = visible_devices(visible)
    if physical not in seen:
        raise ConfigError(
            f"ASCEND_RT_VISIBLE_DEVICES: found {visible!r}, which hides device {physical} of the cluster file",
            "unset it, or take other devices in hosts[].devices",
        )
    return seen.index(physical)
