"""stragglers.json: the ranks that are slow now."""

from launcher.contract.config import Section
from launcher.contract.run_dir import Record


class Straggler(Section):
    """Seconds per step not spent in collectives: this rank's and the median of the others."""

    rank: int
    own_step_seconds: float
    others_step_seconds: float


class Stragglers(Record):
    """The stragglers of an attempt now."""

    ranks: tuple[Straggler, ...]
