"""Decides when to save and what to keep. These are small values, tested without a disk or a clock."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from checkpoints_mgr.errors import CheckpointError


@dataclass(frozen=True)
class SaveEvery:
    """Declares when to save. None turns a criterion off.

    samples: save each time the samples seen pass a multiple of this.
    after_s: save this long after the last save.
    """

    samples: int | None = None
    after_s: float | None = None

    def by_samples(self, seen_before: int, seen: int) -> bool:
        """Return whether a step that went from `seen_before` to `seen` samples has passed a multiple."""
        return self.samples is not None and seen // self.samples > seen_before // self.samples

    def by_time(self, since_last_s: float) -> bool:
        """Return whether a save is due by time. Clocks of ranks differ, so one rank decides and informs the others."""
        return self.after_s is not None and since_last_s >= self.after_s


@dataclass(frozen=True)
class Kept:
    """Holds what retention knows of a committed step."""

    step: int
    pinned: bool = False
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """Declares which committed steps stay. Pinned steps always stay.

    last: number of newest steps that stay.
    every_steps: the first checkpoint of each span of this many steps stays; None: no such rule.
    best: number of best steps by `metric` that stay, among the steps that have it.
    """

    last: int = 2
    every_steps: int | None = None
    best: int = 0
    metric: str = ""
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        if self.last < 1:
            raise CheckpointError(f"keep_last is {self.last}; at least 1 checkpoint must be kept")
        if self.every_steps is not None and self.every_steps < 1:
            raise CheckpointError(f"keep_every is {self.every_steps}; expected at least 1 step")
        if self.best < 0:
            raise CheckpointError(f"keep_best is {self.best}; expected 0 or more")
        if self.best > 0 and not self.metric:
            raise CheckpointError(f"keep_best is {self.best}, but no metric is named; give `metric`")

    def expired(self, steps: Sequence[Kept]) -> list[int]:
        """Return the steps to remove, oldest first."""
        newest_first = sorted(steps, key=lambda kept: -kept.step)
        keep = {kept.step for kept in newest_first[: self.last]} | {kept.step for kept in steps if kept.pinned}
        if self.every_steps is not None:
            # Keep the first checkpoint of each span, not the multiple itself: a save may come late.
            keep |= set({kept.step // self.every_steps: kept.step for kept in newest_first}.values())
        if self.best:
            sign = 1 if self.mode == "min" else -1
            ranked = sorted(
                (sign * kept.metrics[self.metric], kept.step) for kept in steps if self.metric in kept.metrics
            )
            keep |= {step for _, step in ranked[: self.best]}
        return sorted(kept.step for kept in steps if kept.step not in keep)
