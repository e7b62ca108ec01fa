"""Act, vote, then decide: one rank's failure becomes the same error on every rank, and nobody is left waiting."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")
Vote = dict[str, Any]


def together(comm: Communicator, what: str, action: Callable[[], T]) -> list[T]:
    """Run the action on every rank; returns the small results, what JSON holds, in rank order, on every rank.

    CheckpointError "<what>: rank 1: ..." on all ranks when any of them failed.
    """
    return results_of(what, comm.allgather_object(attempt(action)))


def on_root(comm: Communicator, what: str, action: Callable[[], T], root: int = 0) -> T:
    """Run the action on one rank alone; returns its result, what JSON holds, on every rank.

    CheckpointError "<what>: ..." on all ranks when it failed.
    """
    vote = comm.broadcast_object(attempt(action) if comm.rank == root else None, root)
    if vote["error"]:
        raise CheckpointError(f"{what}: {vote['error']}")
    result: T = vote["result"]
    return result


def results_of(what: str, votes: Sequence[Vote]) -> list[Any]:
    """The results of all ranks' votes. CheckpointError when any of them failed."""
    ranks_of: dict[str, list[str]] = {}
    for rank, vote in enumerate(votes):
        if vote["error"]:
            ranks_of.setdefault(vote["error"], []).append(str(rank))
    if ranks_of:
        faults = "; ".join(f"rank {', '.join(ranks)}: {error}" for error, ranks in ranks_of.items())
        raise CheckpointError(f"{what}: {faults}")
    return [vote["result"] for vote in votes]


def attempt(action: Callable[[], Any]) -> Vote:
    """One rank's vote: its result, or what went wrong."""
    try:
        return {"result": action(), "error": ""}
    except CheckpointError as error:
        return {"result": None, "error": str(error)}
    except OSError as error:
        return {"result": None, "error": str(error) or type(error).__name__}
    except Exception as error:
        # Not the user's doing: the traceback must not be lost on its way through the vote.
        logger.exception("unexpected error while saving or restoring a checkpoint")
        return {"result": None, "error": f"{type(error).__name__}: {error}"}


class Job:
    """An action here and now, or on a thread of its own that makes no collective. vote: its outcome once it ended."""

    def __init__(self, action: Callable[[], Any], background: bool, name: str) -> None:
        self.vote: Vote | None = None
        self.ended = threading.Event()
        self._action = action
        if background:
            # A daemon: a disk that hangs must not keep a rank from ending. What it leaves is no checkpoint.
            threading.Thread(target=self._run, name=name, daemon=True).start()
        else:
            self._run()

    def _run(self) -> None:
        self.vote = attempt(self._action)
        del self._action  # what it holds is large
        self.ended.set()
