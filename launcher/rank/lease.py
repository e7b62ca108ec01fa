"""Keeps the launcher's sign of life in an attempt, and ends a cut-off host's ranks without it.

The launcher touches a file on the shared file system. Each shim watches the file's time for changes and measures the
lease by its local clock. So the hosts' clocks need not agree. A touch needs no space: a full disk ends no lease.
"""

import contextlib
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

TERM_GRACE_S = 5.0
_RENEWALS_PER_LEASE = 8
_OUTCOME_S = 1.0  # time for the shim to record how its trainer ended


class Lease:
    """Is the launcher's side: call `renew` as often as you like."""

    def __init__(self, path: Path, lease_s: float) -> None:
        self._path, self._every_s = path, lease_s / _RENEWALS_PER_LEASE
        self._renewed_s = -self._every_s

    def renew(self) -> None:
        """Touch the file if it is time. Errors of the file system are ignored: the lease then runs out."""
        now_s = time.monotonic()
        if now_s - self._renewed_s >= self._every_s:
            self._renewed_s = now_s
            with contextlib.suppress(OSError):
                self._path.touch()
                os.utime(self._path)


class LeaseWatch:
    """Is a shim's side.

    now_s: time on a clock that only goes forward, s
    """

    def __init__(self, path: Path, lease_s: float, now_s: float) -> None:
        self._path, self._lease_s = path, lease_s
        self._seen_ns, self._changed_s = self._touched_ns(), now_s

    def has_run_out(self, now_s: float) -> bool:
        """Return whether the file has not changed for `lease_s`."""
        touched_ns = self._touched_ns()
        if touched_ns is not None and touched_ns != self._seen_ns:
            self._seen_ns, self._changed_s = touched_ns, now_s
        return now_s - self._changed_s > self._lease_s

    def _touched_ns(self) -> int | None:
        # Open the file: NFS asks its server at open, while stat may answer from a cache.
        try:
            with self._path.open("rb") as file:
                return os.fstat(file.fileno()).st_mtime_ns
        except OSError:
            return None


def fence_s(lease_s: float) -> float:
    """Return how long after the last renewal an unreachable host's ranks may still live, s."""
    return lease_s * (1 + 3 / _RENEWALS_PER_LEASE) + TERM_GRACE_S + _OUTCOME_S


def end_without_lease(
    path: Path, lease_s: float, trainer: subprocess.Popen[bytes], log: Path, daemon_pid: int | None
) -> threading.Event:
    """Watch the lease in the background. When it runs out end `trainer` and the MPI daemon that started this process.

    daemon_pid: None for a daemon that ends by itself

    File accesses run in separate threads: on a cut-off host they may hang, which counts as no sign of life.
    The returned event is set before the trainer is ended. A caller that exits first must kill the daemon itself.
    """
    every_s = lease_s / _RENEWALS_PER_LEASE
    ran_out = threading.Event()
    looked_s = [time.monotonic()]

    def look() -> None:
        watch = LeaseWatch(path, lease_s, time.monotonic())
        while not watch.has_run_out(time.monotonic()):
            looked_s[0] = time.monotonic()
            time.sleep(every_s)
        ran_out.set()

    def guard() -> None:
        while not ran_out.wait(every_s) and time.monotonic() - looked_s[0] <= lease_s:
            pass
        ran_out.set()
        threading.Thread(target=_tell, args=(log, lease_s), daemon=True, name="lease log").start()
        _end(trainer)
        time.sleep(_OUTCOME_S)
        # The daemon's other children are ranks of the same job, whose leases run out at the same time.
        if daemon_pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(daemon_pid, signal.SIGKILL)

    for target in (look, guard):
        threading.Thread(target=target, daemon=True, name=f"lease {target.__name__}").start()
    return ran_out


def _tell(log: Path, lease_s: float) -> None:
    with contextlib.suppress(OSError), log.open("a") as file:
        file.write(f"no sign of life of the launcher for {lease_s:g} s: ending this rank\n")


def _end(trainer: subprocess.Popen[bytes]) -> None:
    trainer.send_signal(signal.SIGTERM)
    deadline_s = time.monotonic() + TERM_GRACE_S
    while trainer.poll() is None and time.monotonic() < deadline_s:
        time.sleep(0.1)
    trainer.send_signal(signal.SIGKILL)
