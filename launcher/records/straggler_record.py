"""Defines stragglers.json, which lists the ranks that are slow now."""

from launcher.contract.config import Section
from launcher.contract.run_dir import Record


class Straggler(Section):
    """Compares a slow rank with the others.

    own_step_seconds: time per step that the rank does not spend in collectives, s
    others_step_seconds: median of the same time of the other ranks, s
    """

    rank: int
    own_step_seconds: float
    others_step_seconds: float


class Stragglers(Record):
    """Lists the stragglers that an attempt has now."""

    ranks: tuple[Straggler, ...]
