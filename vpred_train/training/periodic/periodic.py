"""Declares what happens between two steps, on all ranks together, and the moment at which it happens."""

from dataclasses import dataclass

from vpred_train.training.hooks.hook import Hook


@dataclass(frozen=True)
class Boundary:
    """Describes the moment between two steps. It is the same on all ranks.

    step, samples_seen: the run's clock
    global_batch: samples of one step
    stopping: a rank was asked to stop; something waits for the last checkpoint
    finished: no step follows, because the run is complete
    """

    step: int
    samples_seen: int
    global_batch: int
    stopping: bool = False
    finished: bool = False

    @property
    def samples_before(self) -> int:
        """Return the samples seen before the last step."""
        return self.samples_seen - self.global_batch

    def is_due(self, every_samples: int) -> bool:
        """Return whether the last step has passed a multiple of `every_samples`, or has finished the run."""
        return self.finished or self.samples_seen // every_samples > self.samples_before // every_samples


class Periodic:
    """Acts between two steps, on all ranks together, and leaves the training's state unchanged.

    A subclass overrides the moments that it needs, and decides itself what it does when the run is stopping. The others
    do nothing. A run has one list of these, in the order in which they act.

    cause: names the time that it takes, in `Hook.on_pause`
    """

    cause: str

    def before_first_step(self, now: Boundary, hooks: Hook) -> None:
        """A run begins; nothing is trained yet. A resumed run has no such moment."""

    def after_step(self, now: Boundary, hooks: Hook) -> None:
        """A step has ended."""

    def close(self, hooks: Hook) -> None:
        """The run has diverged; no other moment follows."""


class Observer(Periodic):
    """Looks at the networks: before the first step, at intervals and at the end, but not when the run is stopping."""

    def __init__(self, every_samples: int) -> None:
        self.every_samples = every_samples

    def before_first_step(self, now: Boundary, hooks: Hook) -> None:
        self._announced(now, hooks)

    def after_step(self, now: Boundary, hooks: Hook) -> None:
        if now.is_due(self.every_samples) and not now.stopping:
            self._announced(now, hooks)

    def observe(self, now: Boundary, hooks: Hook) -> None:
        """Look at the networks, and report to the hooks."""
        raise NotImplementedError

    def _announced(self, now: Boundary, hooks: Hook) -> None:
        hooks.on_phase("validating", now.step, now.samples_seen)
        self.observe(now, hooks)
