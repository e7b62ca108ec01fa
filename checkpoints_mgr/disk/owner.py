"""Whose a save in progress is, and whether that process is still there.

A tag "host.boot.namespace.pid.started": the boot and the process namespace tell hosts (and containers) of one name
apart, the start time a process from a later one with the same number.
"""

import os
import socket
from pathlib import Path

import xxhash

from checkpoints_mgr.disk import storage

PROC = Path("/proc")
UNKNOWN = "unknown"


def own_tag() -> str:
    """The tag of this process."""
    host = socket.gethostname().split(".")[0]
    return f"{host}.{_boot()}.{_namespace()}.{os.getpid()}.{_started_ticks(os.getpid())}"


def is_alive(tag: str) -> bool | None:
    """Whether the tag's process runs; None: from here nobody can tell."""
    try:
        host, boot, namespace, pid, started = tag.split(".")
        own_host, own_boot, own_namespace, _, _ = own_tag().split(".")
        if host != own_host or UNKNOWN in (boot, own_boot, namespace, started):
            return None
        if boot != own_boot:
            return False
        now = _started_ticks(int(pid))
        return None if namespace != own_namespace or now == UNKNOWN else now == started
    except ValueError:
        return None


def _boot() -> str:
    try:
        return _short(storage.read_bytes(PROC / "sys/kernel/random/boot_id"))
    except OSError:
        return UNKNOWN


def _namespace() -> str:
    try:
        return _short(os.fsencode(os.readlink(PROC / "self/ns/pid")))  # noqa: PTH115 the target is no path
    except OSError:
        return UNKNOWN


def _started_ticks(pid: int) -> str:
    """Field 22 of /proc/PID/stat; the command before it may hold spaces and brackets. "gone": no such process."""
    try:
        fields = storage.read_bytes(PROC / str(pid) / "stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    except OSError:
        return UNKNOWN
    # A zombie has ended: only its parent has not looked yet.
    return "gone" if fields[0] == b"Z" else fields[19].decode()


def _short(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)[:8]
