"""Act, vote, then decide: one rank's failure becomes the same error on every rank, and nobody is left waiting."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.errors import CheckpointError

logger = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True)
class _Vote(Generic[T]):
    """One rank's outcome: its values (one, or none when it failed) and what went wrong."""

    values: tuple[T, ...]
    error: str = ""


def together(comm: Communicator, what: str, action: Callable[[], T]) -> list[T]:
    """Run the action on every rank; returns the small picklable results in rank order, on every rank.

    CheckpointError "<what>: rank 1: ..." on all ranks when any of them failed.
    """
    votes: list[_Vote[T]] = comm.allgather_object(_attempt(action))
    ranks_of: dict[str, list[str]] = {}
    for rank, vote in enumerate(votes):
        if vote.error:
            ranks_of.setdefault(vote.error, []).append(str(rank))
    if ranks_of:
        faults = "; ".join(f"rank {', '.join(ranks)}: {error}" for error, ranks in ranks_of.items())
        raise CheckpointError(f"{what}: {faults}")
    return [vote.values[0] for vote in votes]


def on_root(comm: Communicator, what: str, action: Callable[[], T]) -> T:
    """Run the action on rank 0 alone; returns its picklable result on every rank.

    CheckpointError "<what>: ..." on all ranks when it failed.
    """
    vote: _Vote[T] = comm.broadcast_object(_attempt(action) if comm.rank == 0 else None)
    if vote.error:
        raise CheckpointError(f"{what}: {vote.error}")
    return vote.values[0]


def _attempt(action: Callable[[], T]) -> _Vote[T]:
    try:
        return _Vote((action(),))
    except CheckpointError as error:
        return _Vote((), str(error))
    except OSError as error:
        return _Vote((), str(error) or type(error).__name__)
    except Exception as error:
        # Not the user's doing: the traceback must not be lost on its way through the vote.
        logger.exception("unexpected error while saving or restoring a checkpoint")
        return _Vote((), f"{type(error).__name__}: {error}")
