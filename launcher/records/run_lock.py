"""Holds RUN/lock, so that one launcher at a time uses a run directory."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

from launcher.contract.config import ConfigError
from launcher.contract.run_dir import RunDir

# `status` and `logs` check whether a run is locked and so hold the lock too, for a moment.
_LOOKS_S = 2.0
BEAT_S = 5.0  # a launcher touches its lock this often, but while it looks at hosts
_SILENT_S = 60.0


@contextmanager
def locked(run: RunDir) -> Iterator[None]:
    """Lock the run directory (made if need be) against other launchers. The kernel unlocks it when the process dies."""
    try:
        run.root.mkdir(parents=True, exist_ok=True)
        file = run.lock.open("a+")
    except OSError as error:
        raise ConfigError(f"{run.root}: cannot be written ({error.strerror}); give another --run-dir") from None
    with file:
        deadline_s = time.monotonic() + _LOOKS_S
        while not _takes(file):
            if time.monotonic() >= deadline_s:
                raise ConfigError(f"{run.root}: in use by another launcher; wait for it or give another --run-dir")
            time.sleep(_LOOKS_S / 100)
        file.truncate(0)
        file.write(f"{os.getpid()} {socket.gethostname()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # a launcher that is killed leaves its name


def beat(lock: Path) -> None:
    """Show that the launcher lives, by the time of its lock. It looks lost where this fails."""
    with suppress(OSError):
        os.utime(lock)


def launcher_lives(lock: Path, now_unix_s: float) -> bool:
    """Return whether the launcher of a run lives.

    Locks may not cross hosts. A launcher on another host lives while the time of its lock is young.
    """
    if is_locked(lock):
        return True
    try:
        host, age_s = lock.read_text(errors="replace").split()[1:], now_unix_s - lock.stat().st_mtime
    except OSError:
        return False
    return bool(host) and host != [socket.gethostname()] and age_s < _SILENT_S


def _takes(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(lock: Path) -> bool:
    """Return whether a launcher holds this lock file now."""
    if not lock.exists():
        return False
    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
