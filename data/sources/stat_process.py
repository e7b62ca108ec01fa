"""Runs as `python -I -S stat_process.py FOLDER`: `stat_files` of the NUL-separated names on standard input.

It is a separate program that imports almost nothing. In threads of one process the calls would wait for each other, and
a million of them take seconds.
"""

import os
import stat
import sys
from array import array
from collections.abc import Iterable

ABSENT = -1


def stat_files(folder: str, names: Iterable[bytes]) -> "array[int]":
    """Return size in bytes and modification time in ns of each file, int64 in turn; ABSENT without a regular file."""
    below = os.open(folder, os.O_RDONLY)  # relative names are resolved faster than full paths
    found = array("q")
    for name in names:
        try:
            status = os.stat(name, dir_fd=below)
        except OSError:
            found.extend((ABSENT, ABSENT))
            continue
        regular = stat.S_ISREG(status.st_mode)
        found.extend((status.st_size, status.st_mtime_ns) if regular else (ABSENT, ABSENT))
    os.close(below)
    return found


if __name__ == "__main__":
    sys.stdout.buffer.write(stat_files(sys.argv[1], sys.stdin.buffer.read().split(b"\0")).tobytes())
