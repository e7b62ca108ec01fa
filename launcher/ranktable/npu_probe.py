"""Prints as JSON what a host's tools report about its NPUs: `launcher.ranktable.npu_probe`.

It only collects texts. `inventory` parses them where the table is made, so that its tests need no NPU.
"""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

TOOL_TIMEOUT_S = 20.0
_AT_A_TIME = 8
_HCCN_TOOL = Path("/usr/local/Ascend/driver/tools/hccn_tool")


class Captured(TypedDict):
    """Holds a host's devices and the texts of its tools.

    devices: numbers N of /dev/davinciN
    hccn_conf: text of /etc/hccn.conf, None if it cannot be read
    ip, ip6: device -> output of hccn_tool
    mapping: output of `npu-smi info -m`
    spod: "NPU CHIP" -> output of `npu-smi info -t spod-info`
    """

    devices: list[int]
    hccn_conf: str | None
    ip: dict[str, str]
    ip6: dict[str, str]
    mapping: str
    spod: dict[str, str]


def capture(dev: Path = Path("/dev"), conf: Path = Path("/etc/hccn.conf")) -> Captured:
    """Run the tools. For a tool that is missing or fails the text is its error, which holds no address."""
    devices = sorted(int(path.name.removeprefix("davinci")) for path in dev.glob("davinci[0-9]*"))
    hccn = str(_HCCN_TOOL) if _HCCN_TOOL.exists() else "hccn_tool"
    mapping = _said(["npu-smi", "info", "-m"])
    chips = re.findall(r"^\s*(\d+)\s+(\d+)\s+\d+\s", mapping, re.MULTILINE)
    asked = [[hccn, "-i", str(device), "-ip", "-g"] for device in devices]
    asked6 = [[hccn, "-i", str(device), "-ip", "-inet6", "-g"] for device in devices]
    pods = [["npu-smi", "info", "-t", "spod-info", "-i", npu, "-c", chip] for npu, chip in chips]
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        ip, ip6, spod = (list(pool.map(_said, each)) for each in (asked, asked6, pods))
    names = [str(device) for device in devices]
    return {
        "devices": devices,
        "hccn_conf": _text(conf),
        "ip": dict(zip(names, ip, strict=True)),
        "ip6": dict(zip(names, ip6, strict=True)),
        "mapping": mapping,
        "spod": {f"{npu} {chip}": text for (npu, chip), text in zip(chips, spod, strict=True)},
    }


def _said(argv: Sequence[str]) -> str:
    try:
        answer = subprocess.run(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TOOL_TIMEOUT_S,
            check=False,
        )  # fmt: skip
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    except subprocess.TimeoutExpired:
        return f"{argv[0]}: no answer in {TOOL_TIMEOUT_S:.0f} s"
    return answer.stdout.decode(errors="replace")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return None


def main() -> int:
    """Print what `capture` returns."""
    json.dump(capture(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
