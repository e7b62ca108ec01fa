"""Files that are either whole or absent."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


def write_atomic(path: Path, content: str | bytes, *, fsync: bool = True) -> None:
    """Write `content` aside in the same directory, then rename it to `path`.

    Text becomes UTF-8. A byte of a file's name that has no place in it becomes \\udcXX, which JSON and YAML read alike.

    A reader sees the old file or the whole new one. With `fsync` that also holds after a power cut; without
    (files rewritten every second) only after a crash of the process. On OSError nothing is left behind.
    """
    with open_atomic(path, fsync=fsync) as file:
        file.write(content.encode(errors="backslashreplace") if isinstance(content, str) else content)


@contextlib.contextmanager
def open_atomic(path: Path, *, fsync: bool = True) -> Iterator[BinaryIO]:
    """`write_atomic` for content too large to hold: a file to write to, which becomes `path` when the block ends.

    When the block raises, nothing is left behind and `path` is as before.
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
    """A hidden name in the directory of `path` that nobody else uses."""
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")


def fsync_directory(directory: Path) -> None:
    """Make the renames in `directory` survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
