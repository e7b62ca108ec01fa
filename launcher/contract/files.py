"""Files that are either whole or absent."""

import contextlib
import os
import secrets
from pathlib import Path


def write_atomic(path: Path, content: str | bytes, *, fsync: bool = True) -> None:
    """Write `content` (text as UTF-8) aside in the same directory, then rename it to `path`.

    A reader sees the old file or the whole new one. With `fsync` that also holds after a power cut; without
    (files rewritten every second) only after a crash of the process. On OSError nothing is left behind.
    """
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        with aside.open("xb") as file:
            file.write(data)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    if fsync:
        _fsync_directory(path.parent)


def _fsync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
