"""The cluster file's section on how a run is watched."""

from launcher.contract.config import Section
from launcher.hangs import Timeouts
from launcher.stragglers import StragglerSettings


class SupervisionSettings(Section):
    """When ranks count as hung or slow."""

    timeouts: Timeouts = Timeouts()
    stragglers: StragglerSettings = StragglerSettings()
