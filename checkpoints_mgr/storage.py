"""Every file operation of the package: one place to make durable, to time and to break in tests."""

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}


def make_root(path: Path) -> None:
    """Create a directory and its parents if they are not there."""
    path.mkdir(parents=True, exist_ok=True)


def make_dir(path: Path) -> None:
    """Create a directory that must not exist yet."""
    path.mkdir()


def list_names(path: Path) -> list[str]:
    """Sorted names in a directory; empty when the directory does not exist."""
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return []


def is_dir(path: Path) -> bool:
    """Whether the path is a directory now."""
    return path.is_dir()


def is_occupied(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    return os.path.lexists(path)


def file_size(path: Path) -> int:
    """Size in bytes. OSError when the file is missing."""
    return path.stat().st_size


def write_new(path: Path, size_bytes: int, blocks: Iterable[memoryview]) -> None:
    """Write a file that must not exist yet, flushed to the device before the return.

    blocks: byte views whose lengths add up to size_bytes. The space is taken first, so that a full disk
    shows before the work. OSError: anything the system refuses, or a size that came out otherwise.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _reserve(descriptor, size_bytes)
        for block in blocks:
            rest = block
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
        written_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if written_bytes != size_bytes:
        raise OSError(errno.EIO, f"{written_bytes} bytes written of {size_bytes}", str(path))


def _reserve(descriptor: int, size_bytes: int) -> None:
    if size_bytes == 0 or not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(descriptor, 0, size_bytes)
    except OSError as error:
        if error.errno not in _NO_FALLOCATE:
            raise


def read_bytes(path: Path) -> bytes:
    """The whole of a small file."""
    return path.read_bytes()


def read_into(path: Path, buffer: memoryview) -> int:
    """Fill the buffer from the start of the file; returns the bytes read (fewer when the file is shorter)."""
    done_bytes = 0
    with path.open("rb", buffering=0) as stream:
        while done_bytes < len(buffer):
            count = stream.readinto(buffer[done_bytes:])
            if not count:
                break
            done_bytes += count
    return done_bytes


def rename(source: Path, target: Path) -> None:
    """Rename within one file system. FileExistsError when the target's name is taken."""
    if is_occupied(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    source.rename(target)


def sync_dir(path: Path) -> None:
    """Flush a directory's entries (names created, renamed, removed) to the device."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> None:
    """Remove a directory (or a file) with all in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
