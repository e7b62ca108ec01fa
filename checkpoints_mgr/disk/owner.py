"""Identifies the process that owns a save in progress, and finds out whether it still runs.

A tag is "host.boot.namespace.pid.started". The boot and the PID namespace distinguish hosts (and containers) of the
same name. The start time distinguishes a process from a later one with the same PID.
"""

import os
import socket
from pathlib import Path

import xxhash

from checkpoints_mgr.disk import storage

PROC = Path("/proc")
UNKNOWN = "unknown"


def own_tag() -> str:
    """Return the tag of this process."""
    host = socket.gethostname().split(".")[0]
    return f"{host}.{_boot()}.{_namespace()}.{os.getpid()}.{_started_ticks(os.getpid())}"


def is_alive(tag: str) -> bool | None:
    """Return whether the tag's process runs; None when this process cannot find out."""
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
    """Read field 22 (start time) of /proc/PID/stat; "gone" when there is no such process.

    The command, an earlier field, may hold spaces and brackets.
    """
    try:
        fields = storage.read_bytes(PROC / str(pid) / "stat").rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return "gone"
    except OSError:
        return UNKNOWN
    # A zombie has ended; its parent has not yet waited for it.
    return "gone" if fields[0] == b"Z" else fields[19].decode()


def _short(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)[:8]
