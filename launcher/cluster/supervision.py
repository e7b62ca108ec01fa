"""The cluster file's section on how a run is watched: when ranks count as hung or slow."""

from typing import Annotated

from pydantic import Field

from launcher.contract.config import Seconds, Section


class Timeouts(Section):
    """Seconds without progress of a rank after which the attempt is ended as hung.

    Progress is a new phase or a new step. start_s: until the networks are built and a checkpoint is read. compile_s:
    the first step. checkpoint_s: what a checkpoint holds up training. validation_s, end_s: a whole look at held-out
    images; all samples, exports and the report.
    """

    start_s: Seconds = 1800.0
    compile_s: Seconds = 3600.0
    step_s: Seconds = 900.0
    checkpoint_s: Seconds = 1800.0
    validation_s: Seconds = 3600.0
    end_s: Seconds = 3600.0


class StragglerSettings(Section):
    """A rank is a straggler when its own time per step exceeds the others' median by `slower_ratio` of it and by
    `sigmas` standard deviations, in `windows_in_a_row` windows of `window_s`. MindCluster's defaults for slow nodes."""

    window_s: Seconds = 30.0
    sigmas: Annotated[float, Field(ge=0)] = 3.0
    slower_ratio: Annotated[float, Field(gt=0)] = 0.3
    windows_in_a_row: Annotated[int, Field(ge=1)] = 3


class SupervisionSettings(Section):
    """When ranks count as hung or slow."""

    timeouts: Timeouts = Timeouts()
    stragglers: StragglerSettings = StragglerSettings()
