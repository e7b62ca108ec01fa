"""Every file operation of the package: one place to make durable, to time and to break in tests.

Each operation passes its failpoint just before it takes effect, by name: mkdir, create, reserve, write, fsync, rename,
sync_dir, unlink, rmdir, list, stat, lock, read. What a process that dies leaves behind is what the operations before it
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
WRITE_BYTES = 4 << 20  # of one writev: a small write costs more in the page cache than its copy does
_libc = ctypes.CDLL(None, use_errno=True)
_failpoint: Failpoint | None = None


def set_failpoint(hook: Failpoint | None) -> None:
    """Call hook(operation, path, detail) before each operation; it may raise, wait, or end the process. None: nobody.

    detail: (offset, bytes views) of a write, the target path of a rename, otherwise None.
    """
    global _failpoint
    _failpoint = hook


def _pass(operation: str, path: Path, detail: Any = None) -> None:
    if _failpoint is not None:
        _failpoint(operation, path, detail)


def make_root(path: Path) -> None:
    """Create a directory and its parents if they are not there, each durable in its parent."""
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
    """Sorted names in a directory; empty when the directory does not exist."""
    _pass("list", path)
    try:
        return sorted(entry.name for entry in path.iterdir())
    except FileNotFoundError:
        return []


def is_dir(path: Path) -> bool:
    """Whether the path is a directory now."""
    return path.is_dir()


def is_occupied(path: Path) -> bool:
    """Whether anything has this name, a dangling link included."""
    _pass("stat", path)
    return os.path.lexists(path)


def file_size(path: Path) -> int:
    """Size in bytes. OSError when the file is missing."""
    _pass("stat", path)
    return path.stat().st_size


def is_regular(path: Path) -> bool:
    """Whether it is a file with bytes, which no reader waits for. OSError when it is missing."""
    _pass("stat", path)
    return stat.S_ISREG(path.stat().st_mode)


def file_marks(path: Path) -> list[tuple[str, int, int, int]]:
    """(name, size in bytes, change of the content in ns, inode) of all that is in a directory, by name. OSError."""
    names = list_names(path)
    _pass("stat", path)
    found = [(name, (path / name).stat(follow_symlinks=False)) for name in names]
    return [(name, each.st_size, each.st_mtime_ns, each.st_ino) for name, each in found]


def modified_s(path: Path) -> float:
    """When the file or directory last changed, by its file server's clock. OSError when it is missing."""
    _pass("stat", path)
    return path.stat().st_mtime


def wait_until_visible(path: Path, timeout_s: float) -> bool:
    """Whether the path shows up in time: a network file system may tell other hosts late about a new name."""
    deadline_s = time.monotonic() + timeout_s
    pause_s = 0.01
    while not is_occupied(path):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.5)
    return True


def write_new(path: Path, size_bytes: int, blocks: Iterable[memoryview]) -> None:
    """Write a file that must not exist yet, flushed to the device before the return; errors as of `new_file`."""
    with new_file(path, size_bytes, blocks):
        pass


@contextmanager
def new_file(path: Path, size_bytes: int, blocks: Iterable[memoryview]) -> Iterator[None]:
    """Write a file that must not exist yet; it is flushed to the device when the context ends.

    blocks: byte views whose lengths add up to size_bytes. The space is taken first, so that a full disk
    shows before the work. OSError: anything the system refuses, or a size that came out otherwise. A failed fsync is
    final: the kernel may have dropped the pages, so that a second one would lie.
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
    """The blocks, as many at a time as one write takes."""
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
    """Write the buffers, one after the other, at the file's end; returns their bytes."""
    rest = [buffer for buffer in buffers if buffer]
    written_bytes = 0
    while rest:
        count = os.writev(descriptor, rest)
        written_bytes += count
        rest = _behind(rest, count)
    return written_bytes


def _behind(buffers: Sequence[memoryview], count: int) -> list[memoryview]:
    """What is left of the buffers after their first count bytes."""
    for index, buffer in enumerate(buffers):
        if count < len(buffer):
            return [buffer[count:], *buffers[index + 1 :]]
        count -= len(buffer)
    return []


def _start_write_back(descriptor: int, offset: int, length: int) -> None:
    """Let the device work while the next bytes are hashed and copied; without it all waits for the fsync."""
    if hasattr(_libc, "sync_file_range"):
        _libc.sync_file_range(descriptor, ctypes.c_int64(offset), ctypes.c_int64(length), _START_WRITE_BACK)


def _reserve(path: Path, descriptor: int, size_bytes: int) -> None:
    _pass("reserve", path)
    if size_bytes == 0 or not hasattr(_libc, "fallocate"):
        return
    # Not posix_fallocate: where the file system cannot, the C library would write into every block instead.
    while _libc.fallocate(descriptor, 0, ctypes.c_int64(0), ctypes.c_int64(size_bytes)):
        number = ctypes.get_errno()
        if number in _NO_FALLOCATE:
            return
        if number != errno.EINTR:  # a signal such as SIGUSR2: Python repeats its own calls, not this one
            raise OSError(number, os.strerror(number), str(path))


def read_bytes(path: Path) -> bytes:
    """The whole of a small file."""
    _pass("read", path)
    return path.read_bytes()


@contextmanager
def locked(path: Path, *, exclusive: bool) -> Iterator[bool]:
    """Whether the file is ours for the context: ours alone, or shared with others who only read. The kernel frees it
    when the process ends. A file that cannot be opened, or of a file system without locks, is refused to nobody."""
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
    flags = os.O_CLOEXEC | os.O_NONBLOCK  # a pipe of that name would be waited for
    if exclusive and os.access(path, os.W_OK):
        return os.open(path, os.O_RDWR | flags)  # NFS refuses the lock otherwise: flock(2), "NFS details"
    return os.open(path, os.O_RDONLY | flags)


class Reader:
    """A file open for reading at any offset, from several threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *ended: object) -> None:
        os.close(self._descriptor)

    def read_into(self, buffers: Sequence[memoryview], offset: int) -> int:
        """Fill the buffers, one after the other, from the offset; returns the bytes read, fewer at the file's end."""
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
    """Rename within one file system. FileExistsError when the target's name is taken.

    Two that race for one name of a directory: the kernel lets a directory replace an empty one alone.
    """
    if is_occupied(target):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
    _pass("rename", source, target)
    source.rename(target)


def replace_small(path: Path, content: bytes) -> None:
    """Put a small file in the place of the one of that name, or of none; not flushed: after a power cut it may be
    gone or cut short."""
    fresh = path.with_name(f"{path.name}.new")
    _pass("create", fresh)
    fresh.write_bytes(content)
    _pass("rename", fresh, path)
    fresh.replace(path)


def sync_dir(path: Path) -> None:
    """Flush a directory's entries (names created, renamed, removed) to the device."""
    _pass("sync_dir", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_file(path: Path) -> None:
    """Remove a file. OSError when it is missing."""
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
