"""Holds a run's progress, the plain numbers of its state, as a checkpoint stores them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from data import ORDER_VERSION, TRANSFORM
from launcher.contract.config import ConfigError
from vpred_train.config.train import TrainConfig
from vpred_train.optim.loss_scale import LossScale

OTHER_RUN = "or begin another --run-dir from its weights (vpred-ckpt consolidate, then pretrained.path)"
OTHER_VERSION = (
    "end the run with the version that began it, or begin another --run-dir from its export (pretrained.path)"
)


@dataclass
class Progress:
    """Holds what a run has done, between two steps.

    loss_scale: loss scale of the next step
    samples_seen: the run's clock, samples of all ranks
    optimizer_steps: real updates; skipped steps do not count
    updated_at_samples: the clock at the last real update, from which the averages continue
    data_digest: digest of the source that is trained on
    held_out_digest: digest of the held-out images, "" without validation
    recipe_changes: the keys that changed when the run was resumed, each with the clock at that time
    """

    loss_scale: LossScale
    samples_seen: int = 0
    optimizer_steps: int = 0
    updated_at_samples: int = 0
    data_digest: str = ""
    held_out_digest: str = ""
    recipe_changes: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def fresh(cls, config: TrainConfig, data_digest: str = "", held_out_digest: str = "") -> Self:
        """Make the progress of a run before its first step.

        config: `precision` must be resolved
        """
        return cls(LossScale.fresh(config.precision), data_digest=data_digest, held_out_digest=held_out_digest)

    def to_json(self) -> dict[str, Any]:
        """Return the `progress` document of a checkpoint."""
        return {
            "samples_seen": self.samples_seen,
            "optimizer_steps": self.optimizer_steps,
            "updated_at_samples": self.updated_at_samples,
            "loss_scale": self.loss_scale.to_progress(),
            "order_version": ORDER_VERSION,
            "transform": TRANSFORM,
            "data_digest": self.data_digest,
            "held_out_digest": self.held_out_digest,
            "recipe_changes": self.recipe_changes,
        }

    def from_json(self, document: Mapping[str, Any]) -> None:
        """Continue from a checkpoint's document. The digests stay, since they describe this run's data."""
        self.samples_seen = int(document["samples_seen"])
        self.optimizer_steps = int(document["optimizer_steps"])
        self.updated_at_samples = int(document["updated_at_samples"])
        self.loss_scale = self.loss_scale.restored(document["loss_scale"])
        self.recipe_changes = list(document.get("recipe_changes", []))  # older checkpoints have none

    def require_same_samples(self, document: Mapping[str, Any], name: str, splits: bool) -> None:
        """Check that a checkpoint's samples, their order and their pixels are those of this run.

        name: name of the source, for messages
        splits: the held-out images are taken from the source's folders
        Raises ConfigError: when they differ; the run would miss some samples and repeat others.
        """
        if splits and "held_out_digest" not in document:
            raise ConfigError(
                f"{name}: the version that began the run chose other images to hold out, so that some of this "
                f"version's were trained on; end the run with that version, {OTHER_RUN}"
            )
        if document.get("data_digest", self.data_digest) != self.data_digest:  # older checkpoints have none
            raise ConfigError(
                f"{name}: images, captions or their order have changed since the checkpoint; put them back, {OTHER_RUN}"
            )
        if document.get("held_out_digest", self.held_out_digest) != self.held_out_digest:
            raise ConfigError(
                f"{name}: the held-out images have changed since the checkpoint; put them back, {OTHER_RUN}"
            )
        version = document.get("order_version", 1)
        if version != ORDER_VERSION:
            raise ConfigError(
                f"the checkpoint's samples come in order {version}, this version's in order {ORDER_VERSION}; "
                f"{OTHER_VERSION}"
            )
        transform = document.get("transform", "lanczos-2")  # the last one that was not recorded
        if transform != TRANSFORM:
            raise ConfigError(
                f"the checkpoint's images were resized by {transform}, this version's are by {TRANSFORM}: other "
                f"pixels; {OTHER_VERSION}"
            )
