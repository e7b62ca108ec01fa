"""Prints one host's facts as a JSON object. The preflight runs it there. It uses the standard library only.

`launcher.preflight.host_probe REQUEST`, where REQUEST is JSON with the keys of Request.
"""

import hashlib
import json
import os
import platform
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TypedDict

from launcher.contract.environment import environment, with_home
from launcher.ranktable.npu_probe import Captured, capture

_TOOL_TIMEOUT_S = 10.0
_PACKAGES = ("launcher", "vpred_train", "data", "checkpoints_mgr", "monitoring")


class Request(TypedDict):
    """Lists what the preflight asks a host.

    packages: names whose versions are wanted
    ports: [address, port] to try
    paths: paths that must be readable
    mpirun: path or null
    devices: physical ids of this host's NPUs
    inventory: whether to report all that the tools say about the NPUs' addresses
    place: a folder; the free space of its disk is wanted
    """

    packages: list[str]
    ports: list[tuple[str, int]]
    paths: list[str]
    mpirun: str | None
    devices: list[int]
    inventory: bool
    place: str


class NpuWords(TypedDict):
    """Holds hccn_tool's output for one NPU. A text is empty where the tool cannot be run."""

    health: str
    tls: str


class HostFacts(TypedDict):
    """Holds a host's answer: all that the preflight compares. Sizes are in bytes.

    versions: versions of python, the packages asked for, the project's code (a digest) and mpirun; None where absent
    open_files: the limit, -1 for none
    ports: [port, why it cannot be opened]
    devices: ids of the NPUs that the host has
    visible_devices: value of ASCEND_RT_VISIBLE_DEVICES
    inventory: None unless asked for
    npu: id of each device asked for -> hccn_tool's output
    """

    hostname: str
    time_unix_s: float
    versions: dict[str, str | None]
    free_bytes: int
    shm_bytes: int
    memory_bytes: int
    open_files: int
    missing_paths: list[str]
    ports: list[tuple[int, str]]
    devices: list[int]
    visible_devices: str | None
    inventory: Captured | None
    npu: dict[str, NpuWords]
    npu_smi: str


def main(argv: Sequence[str] | None = None) -> int:
    """Print the facts."""
    request: Request = json.loads((argv or sys.argv[1:])[0])
    print(json.dumps(facts(request)))
    return 0


def facts(request: Request) -> HostFacts:
    """Collect this host's answer."""
    place = next((path for path in (Path(request["place"]), *Path(request["place"]).parents) if path.exists()), None)
    return {
        "hostname": socket.gethostname(),
        "time_unix_s": time.time(),
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in request["packages"]},
            "code": _code_digest(),
            "mpirun": _first_line([request["mpirun"], "--version"]) if request["mpirun"] else None,
        },
        "free_bytes": shutil.disk_usage(place).free if place else 0,
        "shm_bytes": shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,  # noqa: S108  looked at
        "memory_bytes": _available_memory_bytes(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "missing_paths": [path for path in request["paths"] if not os.access(path, os.R_OK)],
        "ports": [(port, reason) for address, port in request["ports"] if (reason := why_closed(address, port))],
        "devices": sorted(int(path.name[7:]) for path in Path("/dev").glob("davinci[0-9]*")),
        "visible_devices": environment().get("ASCEND_RT_VISIBLE_DEVICES"),
        "inventory": capture() if request["inventory"] else None,
        "npu": {str(device): _npu(device) for device in request["devices"]},
        "npu_smi": _output(["npu-smi", "info"]) if request["devices"] else "",
    }


def why_closed(address: str, port: int) -> str | None:
    """Say why no program can listen on `address`:`port`, None when one can."""
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            # http.server sets it too, so that an earlier run's connections in TIME_WAIT do not matter.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            probe.listen(1)
    except OSError as error:
        return error.strerror or str(error)
    return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _code_digest() -> str:
    """Digest all of the project's source files. Hosts that train together must run the same code."""
    digest = hashlib.sha256()
    root = Path(__file__).resolve().parents[2]
    for path in sorted(each for package in _PACKAGES for each in (root / package).rglob("*.py")):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _available_memory_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _npu(device: int) -> NpuWords:
    ask = ["hccn_tool", "-i", str(device)]
    return {"health": _output([*ask, "-net_health", "-g"]), "tls": _output([*ask, "-tls", "-g"])}


def _first_line(argv: Sequence[str | None]) -> str:
    return next(iter(_output([word for word in argv if word]).splitlines()), "")


def _output(argv: Sequence[str]) -> str:
    try:
        answer = subprocess.run(
            argv,
            env=with_home(environment()),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_TOOL_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout


if __name__ == "__main__":
    sys.exit(main())
