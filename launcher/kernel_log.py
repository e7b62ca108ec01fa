"""What the kernel's log tells of the killing of a process for want of memory."""

import errno
import os
import re
from pathlib import Path

_KMSG = Path("/dev/kmsg")
_RECORD_BYTES = 8192  # the kernel's longest record; a shorter read of one fails
# The kernel's numbers are those of the first namespace, whose inode is fixed (PROC_PID_INIT_INO).
_FIRST_NAMESPACE = "pid:[4026531836]"


class KernelLog:
    """What is logged from now on; nothing where it may not be read or numbers processes otherwise than we do."""

    def __init__(self) -> None:
        self._file: int | None = None
        try:
            if Path("/proc/self/ns/pid").readlink().name == _FIRST_NAMESPACE:
                self._file = os.open(_KMSG, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                os.lseek(self._file, 0, os.SEEK_END)
        except OSError:
            return

    def killed_for_memory(self, pid: int) -> str | None:
        """The kernel's words on the killing of `pid`, None without any; to be asked once."""
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
    """In the text of /dev/kmsg or dmesg, the last line that says that `pid` was killed for want of memory, as far as
    its memory; of a control group's memory or the host's (mm/oom_kill.c)."""
    words = rf"((?:Memory cgroup out of memory|Out of memory[^:\n]*): Kill(?:ed)? process {pid} [^\n]*)"
    found = re.findall(words, log)
    return re.sub(r",? (UID:|file-rss|score |or sacrifice).*", "", found[-1]) if found else None
