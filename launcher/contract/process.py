"""Ties a process of a run to its parent and lets it dump its stacks on request."""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

STACKS_SIGNAL = signal.SIGQUIT  # as with Java: dump the stacks and go on
_STDERR = 2  # the descriptor: sys.stderr may be replaced
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def default_signals() -> None:
    """Ignore and block no signal, whatever this process inherited. A child calls it before exec."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def enable_stack_dumps() -> None:
    """Write all threads' stacks to stderr at each STACKS_SIGNAL, and when a fault in native code ends the process."""
    faulthandler.enable(_STDERR)
    faulthandler.register(STACKS_SIGNAL, _STDERR, all_threads=True)


def living_parent(name: str | None = None) -> int | None:
    """Return the pid of the parent that started this process, None when that parent is gone.

    After the parent's death init or a subreaper adopts this process. A child starts in its parent's session, and an
    adopter lives in another one. mpirun has a separate session. Open MPI gives ranks a process group, but no session.

    name: a word in the parent's command line, for children that start in a separate session
    """
    parent_pid = os.getppid()
    try:
        if name is not None:
            return parent_pid if name.encode() in Path(f"/proc/{parent_pid}/cmdline").read_bytes() else None
        return parent_pid if os.getsid(parent_pid) == os.getsid(0) else None
    except (ProcessLookupError, FileNotFoundError):
        return None


def die_with_parent(parent_pid: int) -> None:
    """End this process when its parent ends, by PR_SET_PDEATHSIG of prctl(2).

    parent_pid: the parent, as the caller read it beforehand

    The kernel sends SIGKILL when the parent's *thread* that forked this process ends. So parents start children from
    their main thread. The setting survives exec, but not fork. The kernel reports only deaths after the call: if the
    parent is already gone, this process ends with SIGKILL at once. Off Linux it only logs a warning.
    """
    if _LIBC is None:
        logger.warning("no PR_SET_PDEATHSIG on %s: this process may outlive its parent", sys.platform)
        return
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
