"""What a host's own tools say about its NPUs, as JSON on stdout: `launcher.ranktable.npu_probe`.

It only collects texts; `inventory` reads them where the table is made, so that its tests need no NPU.
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
    """`devices`: numbers of /dev/davinciN. `hccn_conf`: None if it cannot be read. The others are texts of tools.

    `ip` and `ip6`: by device. `mapping`: `npu-smi info -m`. `spod`: by "NPU CHIP".
    """

    devices: list[int]
    hccn_conf: str | None
    ip: dict[str, str]
    ip6: dict[str, str]
    mapping: str
    spod: dict[str, str]


def capture(dev: Path = Path("/dev"), conf: Path = Path("/etc/hccn.conf")) -> Captured:
    """Ask the tools; one that is missing or fails leaves its words, which then hold no address."""
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
    """Print it."""
    json.dump(capture(), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
