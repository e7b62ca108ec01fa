"""Makes all ranks update alike: compiled operations of different processors round differently, and so does numpy."""

import logging

from vpred_train.distributed.collectives import Collective
from vpred_train.kernels import library

logger = logging.getLogger(__name__)


def agree_on_updates(collective: Collective, hostname: str) -> None:
    """Choose how the optimiser and the averages compute. Called by all ranks before the first update.

    They use the compiled operations when every rank has the same ones, and numpy on all ranks otherwise.
    The networks' operations may differ between ranks, since gradients are summed.
    """
    local = library.loaded()
    found = collective.allgather_object([local.name if local else None, hostname])
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
