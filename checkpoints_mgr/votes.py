"""Act, vote, then decide: one rank's failure becomes the same error on every rank, and nobody is left waiting."""

import logging
from collections.abc import Callable
from typing import Any, TypeVar

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def together(comm: Communicator, what: str, action: Callable[[], T]) -> list[T]:
    """Run the action on every rank; returns the small results, what JSON holds, in rank order, on every rank.

    CheckpointError "<what>: rank 1: ..." on all ranks when any of them failed.
    """
    votes = comm.allgather_object(_attempt(action))
    ranks_of: dict[str, list[str]] = {}
    for rank, vote in enumerate(votes):
        if vote["error"]:
            ranks_of.setdefault(vote["error"], []).append(str(rank))
    if ranks_of:
        faults = "; ".join(f"rank {', '.join(ranks)}: {error}" for error, ranks in ranks_of.items())
        raise CheckpointError(f"{what}: {faults}")
    return [vote["result"] for vote in votes]


def on_root(comm: Communicator, what: str, action: Callable[[], T]) -> T:
    """Run the action on rank 0 alone; returns its result, what JSON holds, on every rank.

    CheckpointError "<what>: ..." on all ranks when it failed.
    """
    vote = comm.broadcast_object(_attempt(action) if comm.rank == 0 else None)
    if vote["error"]:
        raise CheckpointError(f"{what}: {vote['error']}")
    result: T = vote["result"]
    return result


def _attempt(action: Callable[[], Any]) -> dict[str, Any]:
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
