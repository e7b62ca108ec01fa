"""The recipe's section on checkpoints."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from checkpoints_mgr import Retention
from launcher.contract.config import FIXED, Section
from vpred_train.config.numbers import AboveZero, Samples


class CheckpointConfig(Section):
    """Times of checkpoints, and which of them stay. An empty file STEP.keep beside a checkpoint keeps it for good."""

    every_samples: Samples
    """Save after each multiple of this many training samples. A run that ends or is stopped also saves."""

    every_epochs: Samples | None = None
    """Also save after each multiple of this many passes over the data. null saves by the other keys alone."""

    every_minutes: AboveZero | None = None
    """Also save this many minutes after the last save began, by the clock of rank 0. null ignores the time."""

    background: bool = True
    """Write checkpoints while training goes on. false stops training until each one is committed."""

    on_busy: Literal["wait", "skip"] = "wait"
    """If a save is due while the last one is still being written, "wait" stops training until it is committed.
    "skip" leaves the new save out."""

    node_folder: Annotated[Path | None, FIXED] = None
    """Absolute path on each host's own disks, in place of RUN/checkpoints. Each host keeps its ranks' part.
    A resume needs all of these hosts again. null uses the shared run directory."""

    keep_last: Samples = 2
    """Number of newest checkpoints to keep. With 2, a damaged newest one leaves another to resume from."""

    keep_every_samples: Samples | None = None
    """Also keep the first checkpoint of each stretch of this many samples. null keeps none for this reason."""

    keep_best: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    """Also keep this many checkpoints with the lowest held-out loss of the average of `ema.use`.
    It counts saves that fall on a validation, and needs `validation`."""

    mindone_unit_samples: Samples | None = None
    """Also write the average of `ema.use` as RUN/ckpt/sd-N.ckpt in MindONE's layout, N in units of this many samples.
    A unit is an epoch or a step there. The newest 10 stay, as in MindONE. null writes none."""

    def retention(self, global_batch: int) -> Retention:
        """The rules of retention, in steps."""
        every_steps = None if self.keep_every_samples is None else max(1, self.keep_every_samples // global_batch)
        return Retention(self.keep_last, every_steps, self.keep_best, metric="validation_loss")
