"""Holds every file operation of the package: one place to make them durable, to time them and to break them in tests.

Each operation passes its failpoint by name, just before it takes effect: mkdir, create, reserve, write, fsync, rename,
sync_dir, unlink, rmdir, list, stat, lock, read. A process that dies at a failpoint leaves what the earlier operations
left.
"""

import ctypes
import errno
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Failpoint = Callable[[str, Path, Any], None]

_NO_FALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS}
_IOV_MAX = 1000  # buffers of one preadv or writev; Linux takes 1024
_START_WRITE_BACK = 2  # SYNC_FILE_RANGE_WRITE of linux/fs.h
WRITE_BYTES = 4 << 20  # of one writev: a small write spends more time in the page cache than on its copy
_libc = ctypes.CDLL(None, use_errno=True)
_failpoint: Failpoint | None = None


def set_failpoint(hook: Failpoint | None) -> None:
    """Call hook(operation, path, detail) before each operation; None removes the hook.

    The hook may raise, wait, or end the process.
    detail: (offset, byte views) of a write, the target path of a rename, otherwise None.
    """
    global _failpoint
    _failpoint = hook


def _pass(operation: str, path: Path, detail: Any = None) -> None:
    if _failpoint is not None:
        _failpoint(operation, path, detail)


def make_root(path: Path) -> None:
    """Create a directory and its missing parents, each durable in its parent."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for directory in reversed(missing):
        _pass("mkdir", directory)
        directory.mkdir(exist_ok=True)
        sync_dir(directory.parent)


def make_dir(path: Path) -> None:
    """Create a directory that must not exist yet."""
    _pass("mkdir", path)
    path.mkdir()


def list_names(path: Path) -> list[str]:
    """Return the sorted names in a directory; empty when the directory does not exist."""
    _pass("list", path)
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return []


def is_dir(path: Path) -> bool:
    """Return whether the path is a directory now."""
    return path.is_dir()


def is_occupied(path: Path) -> bool:
    """Return whether anything has this name, a dangling link included."""
    _pass("stat", path)
    return os.path.lexists(path)


def file_size(path: Path) -> int:
    """Return the size in bytes. Raises OSError: when the file is missing."""
    _pass("stat", path)
    return path.stat().st_size


def is_regular(path: Path) -> bool:
    """Return whether the path is a regular file, whose reader never blocks. Raises OSError: when it is missing."""
    _pass("stat", path)
    return stat.S_ISREG(path.stat().st_mode)


def file_marks(path: Path) -> list[tuple[str, int, int, int]]:
    """Return (name, size in bytes, modification time in ns, inode) of each entry of a directory, sorted by name.

    Raises OSError: when the directory cannot be read.
    """
    names = list_names(path)
    _pass("stat", path)
    found = [(name, (path / name).stat(follow_symlinks=False)) for name in names]
    return [(name, each.st_size, each.st_mtime_ns, each.st_ino) for name, each in found]


def modified_s(path: Path) -> float:
    """Return when the path was last modified: Unix time in seconds by its file server's clock.

    Raises OSError: when it is missing.
    """
    _pass("stat", path)
    return path.stat().st_mtime


def wait_until_visible(path: Path, timeout_s: float) -> bool:
    """Return whether the path shows up in time. A network file system may show a new name late to other hosts."""
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.01
    while not is_occupied(path):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
    return True


def write_new(path: Path, size_bytes: int, blocks: Iterable[memoryview]) -> None:
    """Write a file that must not exist yet, and flush it to the device before the return. Raises as `new_file`."""
    with new_file(path, size_bytes, blocks):
        pass


@contextmanager
def new_file(path: Path, size_bytes: int, blocks: Iterable[memoryview]) -> Iterator[None]:
    """Write a file that must not exist yet; it is flushed to the device when the context ends.

    blocks: byte views whose lengths add up to size_bytes.
    The space is reserved first, so that a full disk shows before the work.
    Raises OSError: when the system refuses an operation, or the file's size is not size_bytes at the end. A failed
    fsync is final: the kernel may have dropped the pages, so a second fsync could report a false success.
    """
    _pass("create", path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        _reserve(path, descriptor, size_bytes)
        offset = 0
        for batch in _batches(blocks):
            _pass("write", path, (offset, batch))
            written_bytes = _write_all(descriptor, batch)
            _start_write_back(descriptor, offset, written_bytes)
            offset += written_bytes
        yield
        _pass("fsync", path)
        os.fsync(descriptor)
        written_bytes = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if written_bytes != size_bytes:
        raise OSError(errno.EIO, f"{written_bytes} bytes written of {size_bytes}", str(path))


def _batches(blocks: Iterable[memoryview]) -> Iterator[list[memoryview]]:
    """Yield the blocks, as many at a time as one write takes."""
    batch: list[memoryview] = []
    size_bytes = 0
    for block in blocks:
        batch.append(block)
        size_bytes += len(block)
        if size_bytes >= WRITE_BYTES or len(batch) == _IOV_MAX:
            yield batch
            batch, size_bytes = [], 0
    if batch:
        yield batch


def _write_all(descriptor: int, buffers: Sequence[memoryview]) -> int:
    """Write the buffers, one after the other, at the file's end, and return the number of bytes."""
    rest = [buffer for buffer in buffers if buffer]
    written_bytes = 0
    while rest:
        count = os.writev(descriptor, rest)
        written_bytes += count
        rest = _behind(rest, count)
    return written_bytes


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return the rest of the buffers after their first `count` bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _start_write_back(descriptor: int, offset: int, length: int) -> None:
    """Start the device's work while the next bytes are hashed and copied. Otherwise all of it waits for the fsync."""
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), _START_WRITE_BACK)


def _reserve(path: Path, descriptor: int, size_bytes: int) -> None:
    _pass("reserve", path)
    if size_bytes == 0 or not hasattr(_libc, "fallocate"):
        return
    # Not posix_fallocate: if the file system cannot reserve, the C library would write into every block instead.
    while _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            return
        if number != errno.EINTR:  # EINTR is a signal such as SIGUSR2: Python repeats its own calls, not this one
            raise OSError(number, os.strerror(number), str(path))


def read_bytes(path: Path) -> bytes:
    """Return the full content of a small file."""
    _pass("read", path)
    return path.read_bytes()


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[bool]:
    """Lock the file for the context and yield whether this process has the lock. The kernel frees it at process end.

    exclusive: no other process may hold a lock; otherwise the lock is shared with other readers.
    The answer is also True when the file cannot be opened or the file system has no locks.
    """
    descriptor, ours = -1, True
    try:
        _pass("lock", path)
        descriptor = _open_to_lock(path, exclusive)
        fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        ours = not isinstance(error, BlockingIOError)
    try:
        yield ours
    finally:
        if descriptor >= 0:
            os.close(descriptor)


def _open_to_lock(path: Path, exclusive: bool) -> int:
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # without O_NONBLOCK, opening a FIFO of that name would block
    if exclusive and os.access(path, os.W_OK):
        return os.open(path, os.O_RDWR | flags)  # NFS otherwise refuses an exclusive lock: flock(2), "NFS details"
    return os.open(path, os.O_RDONLY | flags)


class Reader:
    """Keeps a file open for reading at any offset, from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *ended: object) -> None:
        os.close(self._descriptor)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers, one after the other, from the offset in bytes.

        Returns the number of bytes read, which is smaller at the file's end.
        """
        _pass("read", self.path)
        done_bytes = 0
        rest = [buffer for buffer in buffers if buffer]
        while rest:
            count = os.preadv(self._descriptor, rest[:_IOV_MAX], offset + done_bytes)
            if not count:
                break
            done_bytes += count
            rest = _behind(rest, count)
        return done_bytes


def rename(source: Path, target: Path) -> None:
    """Rename within one file system. Raises FileExistsError: when the target's name is taken.

    If two processes race for one directory name, the second fails: the kernel replaces only an empty directory.
    """
    if is_occupied(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    _pass("rename", source, target)
    source.rename(target)


def replace_small(path: Path, content: bytes) -> None:
    """Create or atomically replace a small file. It is not flushed: after a power cut it may be gone or cut short."""
    fresh = path.with_name(f"{path.name}.new")
    _pass("create", fresh)
    fresh.write_bytes(content)
    _pass("rename", fresh, path)
    fresh.replace(path)


def sync_dir(path: Path) -> None:
    """Flush a directory's entries (created, renamed and removed names) to the device."""
    _pass("sync_dir", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file. Raises OSError: when it is missing."""
    _pass("unlink", path)
    path.unlink()


def remove_tree(path: Path) -> None:
    """Remove a directory (or a file) with all in it."""
    if not stat.S_ISDIR(path.lstat().st_mode):
        remove_file(path)
        return
    for entry in sorted(path.iterdir()):
        remove_tree(entry)
    _pass("rmdir", path)
    path.rmdir()
