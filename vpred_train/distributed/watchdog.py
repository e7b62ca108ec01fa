"""Ends waits for ranks that never answer, and measures how long this rank has waited."""

import faulthandler
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.contract.exit_codes import ExitCode

logger = logging.getLogger(__name__)


class CollectiveTimer:
    """Measures how long this rank has been inside collectives, waiting for other ranks or exchanging with them.

    inside: the rank is inside a collective
    total_s: total time inside collectives, seconds
    """

    def __init__(self) -> None:
        self.inside = False
        self.total_s = 0.0


class Watchdog:
    """Ends this process when a wait for the other ranks outlasts `timeout_s`: a rank that hangs never answers."""

    def __init__(self, rank: int, timeout_s: float) -> None:
        self.rank, self.timeout_s = rank, timeout_s
        self.timer = CollectiveTimer()
        self._deadline_s: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="collective-watchdog").start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the body of the `with` block, which must end within `timeout_s`."""
        started_s = time.monotonic()
        self._deadline_s = started_s + self.timeout_s
        self.timer.inside = True
        try:
            yield
        finally:
            self._deadline_s = None
            self.timer.inside = False
            self.timer.total_s += time.monotonic() - started_s

    def close(self) -> None:
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self.timeout_s / 4)):
            deadline_s = self._deadline_s
            if deadline_s is not None and time.monotonic() > deadline_s:
                logger.critical(
                    "rank %d: the other ranks did not answer within %.0f s; a rank is dead, stuck, or very slow",
                    self.rank,
                    self.timeout_s,
                )
                faulthandler.dump_traceback(all_threads=True)
                os._exit(ExitCode.FAILED)
