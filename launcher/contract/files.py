"""Writes files atomically: a file is either complete or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, content: str | bytes, *, fsync: bool = True) -> None:
    """Write `content` to a temporary file in the same directory, then rename it to `path`.

    Text becomes UTF-8. A byte of a file name that is not valid UTF-8 becomes \\udcXX, which JSON and YAML read alike.

    fsync: a reader sees the old file or the complete new one even after a power cut. Without it (for files that are
    rewritten every second) that holds only after a crash of the process.

    Raises OSError: when `path` cannot be written; no temporary file is left behind.
    """
    with open_atomic(path, fsync=fsync) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomic(path: Path, *, fsync: bool = True) -> Iterator[BinaryIO]:
    """Open a file that becomes `path` when the block ends: `write_atomic` for content too large for memory.

    When the block raises, no temporary file is left behind and `path` is unchanged.
    """
    aside = beside(path)
    try:
        with aside.open("xb") as file:
            yield file
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if fsync:
        fsync_directory(path.parent)


def beside(path: Path) -> Path:
    """Return a hidden name in the directory of `path` that no other writer uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def fsync_directory(directory: Path) -> None:
    """Make the renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
