"""Receives the signals of people and schedulers: stop, stop now, or save a checkpoint and go on."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

_TERM_GRACE_S = 5.0
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


class StoppedBeforeRanksError(KeyboardInterrupt):
    """Says that a stop signal other than Ctrl-C came before any rank was started. As Ctrl-C it interrupts waits."""


@dataclass
class StopRequest:
    """Counts the signals received so far.

    in_job: a scheduler's job, where one request arrives as several signals: only SIGINT counts again
    ranks_may_run: False raises instead of counting, since no rank has anything to save yet
    count: 1 stops after a checkpoint, 2 sends SIGTERM now, 3 sends SIGKILL
    first_s: when the first stop signal came, by time.monotonic
    checkpoints: number of SIGUSR2, each a request to save and go on
    """

    in_job: bool = False
    ranks_may_run: bool = True
    count: int = 0
    first_s: float = 0.0
    checkpoints: int = 0

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.count and self.in_job and number != signal.SIGINT:
            return
        self.count += 1
        if self.count == 1:
            self.first_s = time.monotonic()
        if not self.ranks_may_run:
            raise KeyboardInterrupt if number == signal.SIGINT else StoppedBeforeRanksError

    def receive_checkpoint(self, number: int, frame: FrameType | None) -> None:
        self.checkpoints += 1


@contextmanager
def stop_requests(*, in_job: bool = False, ranks_may_run: bool = True) -> Iterator[StopRequest]:
    """Receive stop signals in the block, in the main thread. An ignored SIGHUP stays ignored (nohup).

    in_job, ranks_may_run: see StopRequest
    """
    stop = StopRequest(in_job, ranks_may_run)
    handlers = dict.fromkeys(_STOP_SIGNALS, stop.receive) | {signal.SIGUSR2: stop.receive_checkpoint}
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        del handlers[signal.SIGHUP]
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_to_send(waited_s: float, grace_s: float, requests: int) -> signal.Signals:
    """Return the signal that mpirun should have received `waited_s` after the first of `requests` requests to stop.

    USR1 makes trainers checkpoint and leave at the next step. TERM and KILL are for trainers that do not.
    """
    if waited_s >= grace_s + _TERM_GRACE_S or requests >= 3:
        return signal.SIGKILL
    if waited_s >= grace_s or requests >= 2:
        return signal.SIGTERM
    return signal.SIGUSR1
