"""Finds out whether the kernel's out-of-memory killer killed a process, from the kernel's log and counts."""

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

_KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192  # the kernel's longest record; a read with a smaller buffer fails
# The kernel logs pids of the first namespace, whose inode is fixed (PROC_PID_INIT_INO).
_FIRST_NAMESPACE = "pid:[4026531836]"


class KernelLog:
    """Reads kernel messages from now on. It is empty without permission, or in a PID namespace, where pids differ."""

    def __init__(self) -> None:
        self._file: int | None = None
        try:
            if Path("/proc/self/ns/pid").readlink().name == _FIRST_NAMESPACE:
                self._file = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._file, 0, os.SEEK_END)
        except OSError:
            return

    def killed_for_memory(self, pid: int) -> str | None:
        """Return the kernel's line on the killing of `pid`, None without one. Call it once."""
        return killed_for_memory(self._rest(), pid)

    def _rest(self) -> str:
        if self._file is None:
            return ""
        records = []
        while True:
            try:
                records.append(os.read(self._file, _RECORD_BYTES))
            except OSError as error:
                if error.errno == errno.EPIPE:  # some were overwritten before they were read
                    continue
                break
        os.close(self._file)
        self._file = None
        return b"".join(records).decode(errors="replace")


def killed_for_memory(log: str, pid: int) -> str | None:
    """Find the last line in `log` that says that `pid` was killed because it ran out of memory.

    log: the text of /dev/kmsg or dmesg

    The memory may be a control group's or the host's (mm/oom_kill.c). The line is cut after the sizes of memory.
    """
    words = rf"((?:Memory cgroup out of memory|Out of memory[^:\n]*): Kill(?:ed)? process {pid} [^\n]*)"
    found = re.findall(words, log)
    return re.sub(r",? (UID:|file-rss|score |or sacrifice).*", "", found[-1]) if found else None


_CGROUPS = Path("/sys/fs/cgroup")


def oom_kills() -> dict[str, int]:
    """Count the processes that the kernel's out-of-memory killer has killed, by the file that says so.

    The files are those of this process's control group (cgroup v2 or v1) and of the host, as far as they can be read.
    Off Linux there are none.
    """
    files = [*_group_files(), Path("/proc/vmstat")]
    counts = {str(path): _count(path) for path in files}
    return {path: count for path, count in counts.items() if count is not None}


def evidence(before: Mapping[str, int]) -> str | None:
    """Describe the first count that has risen since `before`. The control group's come first: they are closest."""
    for path, count in oom_kills().items():
        if count > before.get(path, count):
            return f"oom_kill in {path} rose from {before[path]} to {count}"
    return None


def _group_files() -> list[Path]:
    """Return the files with the counts of this process's control group. cgroups(7) defines /proc/self/cgroup."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers == "":
            found.append(_CGROUPS / group.lstrip("/") / "memory.events")
        elif "memory" in controllers.split(","):
            found.append(_CGROUPS / "memory" / group.lstrip("/") / "memory.oom_control")
    return found


def _count(path: Path) -> int | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
