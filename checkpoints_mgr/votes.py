"""Runs an action, votes, then decides: a rank's failure becomes the same error on every rank, and no rank hangs."""

import errno
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.errors import CheckpointError, CheckpointFaultError, CorruptCheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Vote = dict[str, Any]

ROOM = "make room there, keep fewer checkpoints, or keep them on another disk"
RIGHTS = "give a directory that may be written to"
REMEDIES = {  # errors that the user can fix; any other OSError is a fault of the machine
    errno.ENOSPC: ROOM,
    errno.EDQUOT: ROOM,
    errno.EFBIG: ROOM,
    errno.EROFS: RIGHTS,
    errno.EACCES: RIGHTS,
    errno.EPERM: RIGHTS,
}


def together(comm: Communicator, what: str, action: Callable[[], T]) -> list[T]:
    """Run the action on every rank; return all results, in rank order, on every rank.

    Results are small and are what JSON holds.
    Raises CheckpointError "<what>: rank 1: ...", on all ranks: when any of them failed.
    """
    return results_of(what, comm.allgather_object(attempt(action)))


def on_root(comm: Communicator, what: str, action: Callable[[], T], root: int = 0) -> T:
    """Run the action on rank `root` alone; return its result, which is what JSON holds, on every rank.

    Raises CheckpointError "<what>: ...", on all ranks: when it failed.
    """
    vote = comm.broadcast_object(attempt(action) if comm.rank == root else None, root)
    if vote["error"]:
        raise _error_of([vote], f"{what}: {vote['error']}")
    result: T = vote["result"]
    return result


def results_of(what: str, votes: Sequence[Vote] | Mapping[int, Vote]) -> list[Any]:
    """Return the results of the votes of all ranks, or of some, by rank.

    Raises CheckpointError: when any of them failed.
    """
    by_rank = votes if isinstance(votes, Mapping) else dict(enumerate(votes))
    ranks_of: dict[str, list[str]] = {}
    for rank, vote in by_rank.items():
        if vote["error"]:
            ranks_of.setdefault(vote["error"], []).append(str(rank))
    if ranks_of:
        faults = "; ".join(f"rank {', '.join(ranks)}: {error}" for error, ranks in ranks_of.items())
        raise _error_of(list(by_rank.values()), f"{what}: {faults}")
    return [vote["result"] for vote in by_rank.values()]


def _error_of(votes: Sequence[Vote], message: str) -> CheckpointError:
    is_fault = any(vote["kind"] == "fault" for vote in votes)
    return CheckpointFaultError(message) if is_fault else CheckpointError(message)


def attempt(action: Callable[[], Any]) -> Vote:
    """Run the action and return this rank's vote: the result, or what went wrong.

    kind (of an error): "request" for what the user can fix, "corrupt" for bytes that provably changed, "fault" for all
    others.
    """
    try:
        return {"result": action(), "error": "", "kind": ""}
    except CheckpointFaultError as error:
        return _failed(error, "fault")
    except CorruptCheckpointError as error:
        return _failed(error, "corrupt")
    except CheckpointError as error:
        return _failed(error, "request")
    except OSError as error:
        remedy = REMEDIES.get(error.errno or 0)
        return _failed(error, "fault") if remedy is None else _failed(f"{error}; {remedy}", "request")
    except Exception as error:
        # A bug: log the traceback, which the vote does not carry.
        logger.exception("unexpected error while saving or restoring a checkpoint")
        return _failed(f"{type(error).__name__}: {error}", "fault")


def _failed(error: object, kind: str) -> Vote:
    return {"result": None, "error": str(error) or type(error).__name__, "kind": kind}


NICENESS = 10  # of background threads: if cores are few, training and the ranks' votes come first


class BackgroundTask:
    """Runs an action at once, or on a background thread that makes no collective.

    vote: the outcome, once the action has ended.
    """

    def __init__(self, action: Callable[[], Any], background: bool, name: str) -> None:
        self.vote: Vote | None = None
        self.ended = threading.Event()
        self._action = action
        if background:
            # A daemon thread, so that a hanging disk does not keep a rank from ending. It leaves no checkpoint behind.
            threading.Thread(target=self._run_behind, name=name, daemon=True).start()
        else:
            self._run()

    def _run_behind(self) -> None:
        if sys.platform == "linux":  # on other systems a thread has no priority of its own
            with suppress(OSError):
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._run()

    def _run(self) -> None:
        self.vote = attempt(self._action)
        del self._action  # it holds large arrays
        self.ended.set()
