"""Controls the loss scale, which keeps small gradients from underflowing in float16."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from vpred_train.config.precision import MAX_LOSS_SCALE, PrecisionConfig


@dataclass(frozen=True)
class LossScale:
    """Holds the loss scale of the next step.

    value: factor of the loss; 1 means no scaling
    updates: updates since the scale last changed
    """

    policy: PrecisionConfig
    value: float
    updates: int = 0

    @classmethod
    def fresh(cls, policy: PrecisionConfig) -> "LossScale":
        """Make the scale of a run's first step: 1 unless `policy`, as returned by `on`, asks for a scale."""
        return cls(policy, policy.init_loss_scale if policy.loss_scaling in ("static", "dynamic") else 1.0)

    @property
    def is_dynamic(self) -> bool:
        return self.policy.loss_scaling == "dynamic"

    @property
    def can_fall(self) -> bool:
        """Return whether a gradient that is not finite may be an overflow, which a smaller scale would fix."""
        return self.is_dynamic and self.value > self.policy.min_loss_scale

    def lowered(self) -> "LossScale":
        """Return the scale after an overflow."""
        return LossScale(self.policy, max(self.policy.min_loss_scale, self.value / self.policy.loss_scale_factor))

    def after_update(self) -> "LossScale":
        """Return the scale after a step whose gradient was finite."""
        if not self.is_dynamic:
            return self
        if self.updates + 1 < self.policy.loss_scale_window_steps:
            return replace(self, updates=self.updates + 1)
        return LossScale(self.policy, min(MAX_LOSS_SCALE, self.value * self.policy.loss_scale_factor))

    def to_progress(self) -> dict[str, Any] | None:
        """Return what a checkpoint keeps of a dynamic scale, or None for others, which keep nothing."""
        return {"value": self.value, "updates": self.updates} if self.is_dynamic else None

    def restored(self, kept: Mapping[str, Any] | None) -> "LossScale":
        """Return the scale that a checkpoint kept.

        This scale stays when either has no dynamic scale: the run has changed accelerators.
        """
        return self if kept is None or not self.is_dynamic else LossScale(self.policy, kept["value"], kept["updates"])
