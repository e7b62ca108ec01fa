"""Holds the full state of a run between two steps. A checkpoint holds the same."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from checkpoints_mgr import FlatShard, Segment, State
from data import ORDER_VERSION, TRANSFORM
from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import component_of
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_arrays import FlatArrays
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.distributed.zero import make_sharding
from vpred_train.ema.profiles import average_, decays
from vpred_train.optim.loss_scale import LossScale
from vpred_train.optim.optimizers import OPTIMIZERS


class TrainState:
    """Holds weights, optimiser moments and moving averages as flat float32 arrays, and the clock `samples_seen`.

    weights: the full weights, on each rank
    averages, optimizer: the local range of each average, by name, and of the moments, as `sharding` says
    updated_at_samples: the clock at the last real update, from which the averages continue
    data_digest: digest of the source that is trained on
    held_out_digest: digest of the held-out images, "" without validation
    recipe_changes: the keys that changed when the run was resumed, each with the clock at that time
    """

    def __init__(
        self,
        config: TrainConfig,
        space: FlatSpace,
        collective: Collective,
        data_digest: str = "",
        held_out_digest: str = "",
    ) -> None:
        self.space, self.config = space, config
        self.data_digest, self.held_out_digest = data_digest, held_out_digest
        self.recipe_changes: list[dict[str, Any]] = []
        self.sharding = make_sharding(config, space.size, collective)
        self.weights = space.flatten()
        self.averages = {name: self.own_weights.copy() for name in config.ema.names}
        start, stop = self.sharding.start, self.sharding.stop
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, space.spans, start, stop)
        self.samples_seen = 0
        self.optimizer_steps = 0
        self.updated_at_samples = 0
        self.loss_scale = LossScale.fresh(config.precision)

    @property
    def own_weights(self) -> FloatArray:
        """Return the range of the weights that this rank updates, as a view."""
        return self.weights[self.sharding.start : self.sharding.stop]

    def whole_average(self, name: str) -> FloatArray:
        """Return a full moving average, (size,) float32, not to be written to. Called by all ranks."""
        return self.sharding.whole(self.averages[name])

    def update_(self, gradient: FlatArrays, learning_rate: float, scale: float) -> None:
        """Make one real step of the optimiser and of every average, at `samples_seen`. Called by all ranks.

        gradient: gradient of the local range
        scale: factor that the gradient is multiplied by
        """
        self.optimizer_steps += 1
        self.optimizer.update_(self.own_weights, gradient, self.optimizer_steps, learning_rate, scale)
        decay_of = decays(self.config.ema, self.optimizer_steps, self.updated_at_samples, self.samples_seen)
        for name, average in self.averages.items():
            average_(average, self.own_weights, decay_of[name])
        self.updated_at_samples = self.samples_seen
        self.sharding.gather_(self.weights)
        self.space.write(self.weights)

    def to_checkpoint(self) -> State:
        """Return the full weights, the local ranges of all other arrays, and the progress.

        The arrays share this state's memory.
        """
        whole = self._named("model", self.weights)
        shards = {}
        for component, own in self._shards().items():
            if self.sharding.replicated:
                whole |= self._named(component, own)
            else:
                shards[component] = FlatShard(own, self.space.shapes, self._segments())
        progress = {
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
        return State(whole=whole, progress=progress, shards=shards)

    def from_checkpoint(self, state: State) -> None:
        """Copy a state of the same tensors and ranges into this one, such as `to_checkpoint`'s, filled by a restore."""
        own = self.to_checkpoint()
        for name, values in own.whole.items():
            np.copyto(values, state.whole[name])
        for component, shard in own.shards.items():
            np.copyto(shard.values, state.shards[component].values)
        self.samples_seen = int(state.progress["samples_seen"])
        self.optimizer_steps = int(state.progress["optimizer_steps"])
        self.updated_at_samples = int(state.progress["updated_at_samples"])
        self.loss_scale = self.loss_scale.restored(state.progress["loss_scale"])
        self.recipe_changes = list(state.progress.get("recipe_changes", []))  # older checkpoints have none

    def _shards(self) -> dict[str, FloatArray]:
        averages = {component_of(name): values for name, values in self.averages.items()}
        return {**averages, **self.optimizer.moments}

    def _named(self, component: str, values: FloatArray) -> dict[str, np.ndarray[Any, Any]]:
        return {f"{component}/{name}": tensor for name, tensor in self.space.views(values).items()}

    def _segments(self) -> list[Segment]:
        """List the parts of the tensors that this rank owns."""
        start, stop = self.sharding.start, self.sharding.stop
        parts = [(span, max(span.start, start), min(span.stop, stop)) for span in self.space.spans]
        return [
            Segment(span.name, low - span.start, high - span.start, low - start)
            for span, low, high in parts
            if low < high
        ]


@contextmanager
def average_in_use(state: TrainState, name: str) -> Iterator[None]:
    """Let the networks hold this average instead of the raw weights inside the `with` block. Called by all ranks."""
    state.space.write(state.whole_average(name))
    try:
        yield
    finally:
        state.space.write(state.weights)
