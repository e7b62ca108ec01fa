"""What a process of a run owes the others: it does not outlive its parent, and tells where it stands when asked."""

import ctypes
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path

logger = logging.getLogger(__name__)

STACKS_SIGNAL = signal.SIGQUIT  # as with Java: tell your stacks and go on
_STDERR = 2  # the descriptor: sys.stderr may be replaced
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def default_signals() -> None:
    """Ignore and block no signal, whatever this process inherited. For a child before it becomes another program."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def tell_stacks() -> None:
    """From now on write all threads' stacks to stderr at STACKS_SIGNAL, and when a fault in native code ends us."""
    faulthandler.enable(_STDERR)
    faulthandler.register(STACKS_SIGNAL, _STDERR, all_threads=True)


def living_parent(name: str | None = None) -> int | None:
    """The pid of the parent that started us; None when it is gone and init, or a subreaper, has adopted us.

    Children start in their parent's session, adopters live in another: mpirun has a session of its own, and
    Open MPI gives ranks a process group but no session. `name`: for children that have a session of their own, a
    word in the parent's command line.
    """
    parent_pid = os.getppid()
    try:
        if name is not None:
            return parent_pid if name.encode() in Path(f"/proc/{parent_pid}/cmdline").read_bytes() else None
        return parent_pid if os.getsid(parent_pid) == os.getsid(0) else None
    except (ProcessLookupError, FileNotFoundError):
        return None


def die_with_parent(parent_pid: int) -> None:
    """Tie this process's life to that of `parent_pid`, its parent as read by the caller beforehand.

    By prctl(2), PR_SET_PDEATHSIG. The signal follows the parent's *thread* that forked us, so parents start children
    from their main thread. It survives exec, but not fork. Ends this process with SIGKILL if the parent is already
    gone, since the kernel only tells of deaths after the call. Off Linux: a log line and nothing else.
    """
    if _LIBC is None:
        logger.warning("no PR_SET_PDEATHSIG on %s: this process may outlive its parent", sys.platform)
        return
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG): {os.strerror(code)}")
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), signal.SIGKILL)
