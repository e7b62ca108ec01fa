"""Defines the cluster file's section on hung and slow ranks."""

from typing import Annotated

from pydantic import Field

from launcher.contract.config import Seconds, Section


class Timeouts(Section):
    """Seconds without progress of a rank after which the attempt is ended as hung.

    Progress is a new phase or a new step. Each phase has a limit of its own.
    """

    start_s: Seconds = 1800.0
    """Seconds from the start of the attempt until the networks are built and a checkpoint is read."""

    compile_s: Seconds = 3600.0
    """Seconds for the first step of each image size, which compiles its graph.
    MindONE reports 20 to 38 minutes for SDXL on Ascend."""

    step_s: Seconds = 900.0
    """Seconds for any other step."""

    checkpoint_s: Seconds = 1800.0
    """Seconds for which one checkpoint may hold up training."""

    validation_s: Seconds = 3600.0
    """Seconds for validation and previews together, each time that they are due."""

    end_s: Seconds = 3600.0
    """Seconds for the end of a run: final samples, exported weights and the report."""


class StragglerSettings(Section):
    """Limits of a slow rank. They compare its own time per step, without waits for others, with the other ranks'.

    The defaults are those of MindCluster's detection of slow nodes.
    """

    window_s: Seconds = 30.0
    """Seconds over which the times of a rank's steps are averaged. MindCluster: 30."""

    sigmas: Annotated[float, Field(ge=0)] = 3.0
    """A slow rank exceeds the others' median by this many of their standard deviations, and by `slower_ratio`.
    MindCluster: 3."""

    slower_ratio: Annotated[float, Field(gt=0)] = 0.3
    """A slow rank exceeds the others' median by this share of it, and by `sigmas`. MindCluster: 0.3."""

    windows_in_a_row: Annotated[int, Field(ge=1)] = 3
    """Number of windows in a row in which a rank must be slow. MindCluster: 3."""


class SupervisionSettings(Section):
    """Limits after which ranks count as hung or slow."""

    timeouts: Timeouts = Timeouts()
    """Seconds after which ranks count as hung, by phase."""

    stragglers: StragglerSettings = StragglerSettings()
    """Limits of a slow rank."""
