"""Faults at named file operations, for ranks that are threads or processes: "write#3@rank1=kill".

OPERATION#N@rankR=ACTION: at the operation (* is any) that would be number N (0 is the first) on rank R (@rankR may be
left out: all ranks count together). Actions: kill, stop, term, raise:ERRNO, delay:SECONDS; die raises Killed, which
stands for kill -9 where ranks are threads.
"""

import errno
import os
import re
import signal
import threading
import time
from pathlib import Path
from typing import Any

SPEC = re.compile(r"(?P<operation>\*|\w+)#(?P<index>\d+)(@rank(?P<rank>\d+))?=(?P<action>\w+)(:(?P<argument>[\w.]+))?")


class Killed(BaseException):
    """Stands for kill -9: no `except Exception` may run after it."""


class Fault:
    """The hook for storage.set_failpoint. reached: whether it has struck. rank: of this process, None for threads."""

    def __init__(self, spec: str, rank: int | None = None) -> None:
        match = SPEC.fullmatch(spec)
        assert match is not None, spec
        self.operation, self.index = match["operation"], int(match["index"])
        self.rank = None if match["rank"] is None else int(match["rank"])
        self.action, self.argument = match["action"], match["argument"]
        self.own_rank, self.count, self.reached = rank, 0, False
        self.lock = threading.Lock()

    def __call__(self, operation: str, path: Path, detail: Any) -> None:
        if self.operation not in ("*", operation):
            return
        if self.rank is not None and self.rank != (thread_rank() if self.own_rank is None else self.own_rank):
            return
        with self.lock:
            strikes = self.count == self.index
            self.count += 1
        if strikes:
            self.reached = True
            self.strike(path)

    def strike(self, path: Path) -> None:
        if self.action == "die":
            raise Killed
        if self.action == "raise":
            number = getattr(errno, self.argument)
            raise OSError(number, os.strerror(number), str(path))
        if self.action == "delay":
            time.sleep(float(self.argument))
        else:
            os.kill(os.getpid(), {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}[self.action])


def thread_rank() -> int | None:
    """The rank that a thread works for, by the number in its name; None for a reader's and the main one."""
    match = re.fullmatch(r"(?:rank_|checkpoint-writer-)(\d+)", threading.current_thread().name)
    return int(match[1]) if match else None
