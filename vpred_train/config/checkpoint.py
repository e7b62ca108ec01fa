"""When to save, and what to keep."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from checkpoints_mgr import Retention
from launcher.contract.config import FIXED, Section
from vpred_train.config.numbers import AboveZero, Samples


class CheckpointConfig(Section):
    """When to save, and what to keep.

    A save is due after each multiple of `every_samples`, after each `every_epochs` passes over the data,
    `every_minutes` after the last one, and when asked for. `background`: it is written while training goes on; if one
    is due before the last is written, `on_busy` says whether to wait for that or to skip the new one.
    `node_folder`: a folder of this run's own on each host's disks, which takes the place of RUN/checkpoints where hosts
    share none that are fast; a host keeps its ranks' part, and all hosts must be there again for a resume.
    Retention: the newest `keep_last`, the first of every `keep_every_samples`, the `keep_best` by held-out loss (of the
    average of `ema.use`, taken where validation and save fall together), and any step beside which lies an empty file
    STEP.keep.
    `mindone_unit_samples`: with each checkpoint, also write the average of `ema.use` as RUN/ckpt/sd-N.ckpt in MindONE's
    layout, where N counts units of so many samples (those of an epoch, or of a step); ten of them stay.
    """

    every_samples: Samples
    every_epochs: Samples | None = None
    every_minutes: AboveZero | None = None
    background: bool = True
    on_busy: Literal["wait", "skip"] = "wait"
    node_folder: Annotated[Path | None, FIXED] = None
    keep_last: Samples = 2
    keep_every_samples: Samples | None = None
    keep_best: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    mindone_unit_samples: Samples | None = None

    def retention(self, global_batch: int) -> Retention:
        """What stays, in steps."""
        every_steps = None if self.keep_every_samples is None else max(1, self.keep_every_samples // global_batch)
        return Retention(self.keep_last, every_steps, self.keep_best, metric="validation_loss")
