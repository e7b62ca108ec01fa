"""One way of updating on all ranks: compiled operations of another processor round otherwise, and so does numpy."""

import logging

from vpred_train.distributed.collectives import Collective
from vpred_train.kernels import library

logger = logging.getLogger(__name__)


def agree_on_updates(collective: Collective, hostname: str) -> None:
    """Called by all ranks before the first update: the optimiser and the averages use the compiled operations where
    every rank has the same, and numpy on all ranks otherwise. The networks' own may differ: gradients are summed."""
    own = library.loaded()
    found = collective.allgather_object([own.name if own else None, hostname])
    library.use_for_updates(alike := len({name for name, _ in found}) == 1)
    if alike or collective.rank != 0:
        return
    first_rank = {name: rank for rank, (name, _) in reversed(list(enumerate(found)))}
    reasons = [
        f"rank {rank} on {found[rank][1]} has {name or f'none (make them: {library.BUILD_COMMAND})'}"
        for name, rank in sorted(first_rank.items(), key=lambda each: each[1])
    ]
    logger.warning(
        "optimiser and averages go by numpy on all ranks: compiled operations differ: %s", "; ".join(reasons)
    )
