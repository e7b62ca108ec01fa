"""Holds the state of a run in host memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from checkpoints_mgr import FlatShard, Segment, State
from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import component_of
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_arrays import FlatArrays
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.distributed.zero import make_sharding
from vpred_train.ema.profiles import average_, decays
from vpred_train.engine.progress import Progress
from vpred_train.optim.optimizers import OPTIMIZERS


class HostState:
    """Implements `TrainingState` with flat float32 arrays.

    weights: the full weights, on each rank
    averages, optimizer: the local range of each average, by name, and of the moments, as `sharding` says
    """

    def __init__(self, config: TrainConfig, space: FlatSpace, collective: Collective, progress: Progress) -> None:
        self.space, self.config, self.progress = space, config, progress
        self.sharding = make_sharding(config, space.size, collective)
        self.weights = space.flatten()
        self.averages = {name: self.local_weights.copy() for name in config.ema.names}
        start, stop = self.sharding.start, self.sharding.stop
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, space.spans, start, stop)

    @property
    def local_weights(self) -> FloatArray:
        """Return the range of the weights that this rank updates, as a view."""
        return self.weights[self.sharding.start : self.sharding.stop]

    def full(self, average: str | None) -> FloatArray:
        return self.weights if average is None else self.sharding.full(self.averages[average])

    @contextmanager
    def showing(self, average: str) -> Iterator[None]:
        self.space.write(self.full(average))
        try:
            yield
        finally:
            self.space.write(self.weights)

    def update_(self, gradient: FlatArrays, learning_rate: float, scale: float) -> None:
        """Make one real step of the optimiser and of every average, at `progress.samples_seen`. Called by all ranks.

        gradient: gradient of the local range
        scale: factor that the gradient is multiplied by
        """
        progress = self.progress
        progress.optimizer_steps += 1
        self.optimizer.update_(self.local_weights, gradient, progress.optimizer_steps, learning_rate, scale)
        decay_of = decays(self.config.ema, progress.optimizer_steps, progress.updated_at_samples, progress.samples_seen)
        for name, average in self.averages.items():
            average_(average, self.local_weights, decay_of[name])
        progress.updated_at_samples = progress.samples_seen
        self.sharding.gather_(self.weights)
        self.space.write(self.weights)

    def to_checkpoint(self) -> State:
        """Return the full weights, the local ranges of all other arrays, and the progress.

        The arrays share this state's memory.
        """
        whole = self._named("model", self.weights)
        shards = {}
        for component, local in self._local_ranges().items():
            if self.sharding.replicated:
                whole |= self._named(component, local)
            else:
                shards[component] = FlatShard(local, self.space.shapes, self._segments())
        return State(whole=whole, progress=self.progress.to_json(), shards=shards)

    def from_checkpoint(self, state: State) -> None:
        present = self.to_checkpoint()
        for name, values in present.whole.items():
            np.copyto(values, state.whole[name])
        for component, shard in present.shards.items():
            np.copyto(shard.values, state.shards[component].values)
        self.progress.from_json(state.progress)
        self.space.write(self.weights)

    def _local_ranges(self) -> dict[str, FloatArray]:
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
