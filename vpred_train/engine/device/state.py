"""Holds the state of a run on the device: each rank keeps its parts of weights, moments and averages there."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from mindspore import Tensor

from checkpoints_mgr import FlatShard, State, check_alike
from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import component_of
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.device.buckets import MAX_ELEMENTS, LocalParts, make_buckets
from vpred_train.engine.device.cells import MODEL, Arrays, Show, Spread
from vpred_train.engine.progress import Progress
from vpred_train.host_copies import to_host


class DeviceState:
    """Implements `TrainingState` with parameters of MindSpore. The graphs change them; nothing is kept on the host.

    local: this rank's part of every bucket; the full buckets with zero_stage 0 or one rank
    arrays: the parts of the weights, from which the networks' parameters are set, and of moments and averages
    """

    def __init__(self, config: TrainConfig, space: FlatSpace, collective: Collective, progress: Progress) -> None:
        self.space, self.collective, self.progress = space, collective, progress
        networks = {name: to_host(each) for name, each in zip(space.shapes, space.parameters, strict=True)}
        check_alike(collective, "cannot train", networks)
        sharded = config.zero_stage == 1
        ranks, rank = (collective.world_size, collective.rank) if sharded else (1, 0)
        self.local = LocalParts(make_buckets(space.spans, ranks, MAX_ELEMENTS), rank, ranks)
        self.arrays = Arrays(self.local, config.optimizer, config.ema.names)
        self._names = config.ema.names
        self._show = Show(self.arrays, Spread(space, self.local))
        for number, (bucket, part) in enumerate(zip(self.local.buckets, self.local.slices, strict=True)):
            values = np.zeros(bucket.size, np.float32)
            for span, start in bucket.places():
                values[start : start + span.stop - span.start] = networks[span.name].reshape(-1)
            for component in (MODEL, *map(component_of, self._names)):
                self.arrays.of(component)[number].set_data(Tensor(values[part]))

    def to_checkpoint(self) -> State:
        """Return a copy of this rank's parts, or of the full tensors where every rank holds them, and the progress."""
        segments, shapes = self.local.segments(), self.space.shapes
        shards, whole = {}, {}
        for component in self.arrays.components:
            values = np.concatenate([to_host(part) for part in self.arrays.of(component)])
            if self.local.ranks > 1:
                shards[component] = FlatShard(values, shapes, segments)
                continue
            for each in segments:
                tensor = values[each.start : each.start + each.high].reshape(shapes[each.tensor])
                whole[f"{component}/{each.tensor}"] = tensor
        return State(whole=whole, progress=self.progress.to_json(), shards=shards)

    def from_checkpoint(self, state: State) -> None:
        segments, size = self.local.segments(), sum(part.stop - part.start for part in self.local.slices)
        for component in self.arrays.components:
            values = np.zeros(size, np.float32)
            if self.local.ranks > 1:
                np.copyto(values, state.shards[component].values)
            else:
                for each in segments:
                    tensor = state.whole[f"{component}/{each.tensor}"]
                    values[each.start : each.start + each.high] = tensor.reshape(-1)
            for parameter, place in zip(self.arrays.of(component), self.local.places, strict=True):
                parameter.set_data(Tensor(values[place]))
        self.progress.from_json(state.progress)
        self._set_networks(None)

    def full(self, average: str | None) -> FloatArray:
        if average is None:
            return self.space.read()
        with self.showing(average):
            return self.space.read()

    @contextmanager
    def showing(self, average: str) -> Iterator[None]:
        self._set_networks(average)
        try:
            yield
        finally:
            self._set_networks(None)

    def _set_networks(self, average: str | None) -> None:
        """Let the networks hold an average, or the weights. Called by all ranks."""
        with self.collective.watching():
            to_host(self._show(Tensor([name == average for name in self._names])))
