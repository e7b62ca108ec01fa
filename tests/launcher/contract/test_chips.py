"""Chips by the names that CANN, npu-smi and MindSpore give them, and the numbers of visible devices."""

from pathlib import Path

import pytest

from launcher.contract.chips import (
    chip_names,
    installed_chips,
    is_first_generation,
    logical_device,
    refuse_first_generation,
    visible_devices,
)
from launcher.contract.config import ConfigError

# CANN's SoC names as MindSpore 2.10's Ascend plug-in lists them, npu-smi's names, and MindSpore's families.
OLD = ["Ascend910A", "Ascend910B", "Ascend910ProA", "Ascend910ProB", "Ascend910PremiumA"]
OLD += ["910A", "910B", "910ProB", "Ascend 910B", "ascend910"]
NEW = ["Ascend910B1", "Ascend910B2", "Ascend910B2C", "Ascend910B3", "Ascend910B4", "Ascend910B4-1", "Ascend910_9391"]
NEW += ["910B3", "910B4-1", "Ascend 910B3", "Ascend910", "ascend910b", "ascend910_93", "Ascend950PR_9599", ""]

NPU_SMI = """\
+------------------------------------------------------------------------------------------------+
| npu-smi 24.1.0                   Version: 24.1.0                                               |
+---------------------------+---------------+----------------------------------------------------+
| NPU   Name                | Health        | Power(W)    Temp(C)           Hugepages-Usage(page)|
| Chip  Phy-ID              | Bus-Id        | AICore(%)   Memory-Usage(MB)  HBM-Usage(MB)        |
+===========================+===============+====================================================+
| 0     {0}| OK            | 68.2        37                0    / 0             |
| 0     0                   | 0000:C1:00.0  | 0           0    / 0          3416 / 65536         |
+===========================+===============+====================================================+
| 15    {1}| Warning       | 68.2        37                0    / 0             |
| 0     15                  | 0000:C1:00.0  | 0           0    / 0          3416 / 65536         |
+===========================+===============+====================================================+
| NPU     Chip              | Process id    | Process name             | Process memory(MB)      |
+===========================+===============+====================================================+
| 0       0                 | 692318        | python3                  | 12417                   |
"""


@pytest.mark.parametrize("name", OLD)
def test_the_first_generation_is_recognised(name: str) -> None:
    assert is_first_generation(name)
    with pytest.raises(ConfigError, match=f"found {name}, an Ascend 910 of the first generation.*take Atlas A2"):
        refuse_first_generation(["910B3", name])


@pytest.mark.parametrize("name", NEW)
def test_later_chips_and_unknown_ones_are_not_refused(name: str) -> None:
    assert not is_first_generation(name)
    refuse_first_generation([name])


@pytest.mark.parametrize("pair", [("910B3", "910B4-1"), ("Ascend910", "Ascend910"), ("910ProB", "910B")])
def test_npu_smi_names_each_device_once(pair: tuple[str, str]) -> None:
    assert chip_names(NPU_SMI.format(*(name.ljust(20) for name in pair))) == list(pair)


def test_the_hosts_chips_come_from_npu_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert installed_chips() == []  # without npu-smi
    tool = tmp_path / "npu-smi"
    tool.write_text(f"#!/bin/sh\ncat <<END\n{NPU_SMI.format('910A'.ljust(20), '910A'.ljust(20))}END\n")
    tool.chmod(0o755)
    assert installed_chips() == ["910A", "910A"]


def test_visible_devices_are_numbered_in_the_order_of_the_variable() -> None:
    assert visible_devices("4-6, 1") == [4, 5, 6, 1]
    assert visible_devices("0,1,x,2") == [0, 1]
    assert [logical_device(each, "4-6,1") for each in (4, 6, 1)] == [0, 2, 3]
    assert logical_device(5, None) == logical_device(5, "") == 5
    with pytest.raises(ConfigError, match="ASCEND_RT_VISIBLE_DEVICES: found '4-6,1', which hides device 0 of the clus"):
        logical_device(0, "4-6,1")
