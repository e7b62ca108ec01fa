"""Makes samples for a rank in a process that `workers.py` starts: `data.loading.worker SOCKET_FD MEMORY_FD`.

It is a separate program, not a fork: a rank runs MPI, MindSpore and their threads, which do not survive a fork.
"""

import contextlib
import ctypes
import mmap
import os
import sys
import threading
import traceback
from multiprocessing.connection import Connection

from data.loading.batch_memory import views

# Parameters of mallopt (malloc.h, glibc), and their values in bytes.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT_BYTES, MAPPED_FROM_BYTES = 256 << 20, 32 << 20  # the second is the most that glibc takes


def end_with_rank() -> None:
    """End this process, whatever it does, when the rank has ended: the kernel then closes the other end of stdin."""

    def wait() -> None:
        os.read(0, 1)
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()


def keep_freed_memory() -> None:
    """Make glibc keep freed memory, so that the next image reuses the memory of the last one.

    Pages that return to the kernel and are taken again cost up to half of the time, depending on which sizes come
    first. Other C libraries have no such setting.
    """
    with contextlib.suppress(AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, MAPPED_FROM_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def serve(tasks: Connection, memory: mmap.mmap) -> None:
    """Make each requested sample until the rank closes the socket; answer each task with None or the traceback."""
    fetcher, samples = tasks.recv()
    while True:
        start, place, sample_id, epoch, size = tasks.recv()
        error = None
        try:
            batch = views(memory, start, fetcher.specs(size), samples)
            fetcher.fetch(sample_id, epoch, size, {name: array[place, ...] for name, array in batch.items()})
        except Exception:
            error = traceback.format_exc()
        tasks.send(error)


def main() -> int:
    """Serve tasks until the rank closes the socket or ends."""
    end_with_rank()
    keep_freed_memory()
    socket_fd, memory_fd = (int(text) for text in sys.argv[1:])
    with Connection(socket_fd) as tasks, contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        serve(tasks, mmap.mmap(memory_fd, 0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
