"""Defines stragglers.json, which lists the ranks that are slow now."""

from launcher.contract.config import Section
from launcher.contract.run_dir import Record


class Straggler(Section):
    """Compares a slow rank with the others.

    own_step_seconds: time per step that the rank does not spend in collectives, s. On engine device it is the host's
        time from the end of one step on the device to the start of the next
    others_step_seconds: median of the same time of the other ranks, s
    """

    rank: int
    own_step_seconds: float
    others_step_seconds: float

    def describe(self, engine: str) -> str:
        """Describe the comparison. Engine device does not separate a device's work from its wait for the others."""
        text = (
            f"{self.own_step_seconds:.3f} s of local work per step, "
            f"the median of the others is {self.others_step_seconds:.3f} s"
        )
        if engine == "device":
            text += "; this is its host's time between two steps, a slow device is found by `vpred-launch doctor`"
        return text


class Stragglers(Record):
    """Lists the stragglers that an attempt has now."""

    ranks: tuple[Straggler, ...]
