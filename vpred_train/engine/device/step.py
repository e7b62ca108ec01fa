"""Runs one optimiser step on the device: the batch and a few numbers in, a few numbers out."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from data import Batch
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.ema.profiles import decays
from vpred_train.engine.device.buckets import LocalParts
from vpred_train.engine.device.cells import Accumulate, Apply, Arrays, Backward, Sums, Update, WholeStep
from vpred_train.engine.device.feed import make_feed
from vpred_train.engine.device.rules import RULES
from vpred_train.engine.device.state import DeviceState
from vpred_train.engine.graph_cache import Graph, compile_cached, counted_compilation
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.objective import DiffusionLoss, Objective
from vpred_train.engine.step_result import StepClock, StepResult
from vpred_train.host_copies import to_device, to_host
from vpred_train.optim.learning_rate import learning_rate


class DeviceStep:
    """Implements `Step` with graphs that keep gradients, optimiser and averages on the device.

    graphs: those of `make_graphs`
    graph_folder: keeps them for the next start of this rank; None compiles them each time
    """

    def __init__(
        self,
        config: TrainConfig,
        state: DeviceState,
        collective: Collective,
        inputs: ModelInputs,
        objective: Objective,
        graphs: Sequence[nn.Cell],
        graph_folder: Path | None = None,
    ) -> None:
        self.config, self.state, self.collective = config, state, collective
        self.inputs, self.objective, self.graphs = inputs, objective, graphs
        self.feed = make_feed(inputs, objective)
        self.rule = RULES[config.optimizer.name]
        self._folder = graph_folder
        self._compiled: set[tuple[Any, ...]] = set()

    def __call__(self, batch: Batch) -> StepResult:
        clock = StepClock(self.collective.timer, batch.wait_s)
        config, progress = self.config, self.state.progress
        progress.samples_seen = batch.samples_seen
        scale = progress.loss_scale.value
        rate = learning_rate(config, progress.samples_seen)
        report = self._run(batch, to_device(self.numbers(rate)), clock)
        votes, (grad_norm, updated) = report[:-2].reshape(-1, 2), report[-2:].tolist()
        loss, finite = float(votes[:, 0].mean(dtype=np.float64)) / scale, bool(updated)
        overflow = not finite and math.isfinite(loss) and progress.loss_scale.can_fall
        if finite:
            progress.optimizer_steps += 1
            progress.updated_at_samples = progress.samples_seen
            progress.loss_scale = progress.loss_scale.after_update()
        elif overflow:
            progress.loss_scale = progress.loss_scale.lowered()
        return StepResult(
            step=progress.samples_seen // config.global_batch,
            samples_seen=progress.samples_seen,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            finite=finite,
            overflow=overflow,
            loss_scale=scale,
            nonfinite_samples={} if finite else self._blamed(votes, batch),
            **clock.seconds(),
        )

    def _run(self, batch: Batch, numbers: Tensor, clock: StepClock) -> NDArray[Any]:
        """Run the step's graphs, and return the numbers of `Update`."""
        scale = self.state.progress.loss_scale.value
        if len(self.graphs) == 1:
            (graph,) = self.graphs
            with clock.encode():
                inputs = (*self.feed(batch, scale), numbers)
            self._prepare([(graph, inputs)])
        else:
            accumulate, graph = self.graphs
            inputs = (numbers,)
            parts = self.config.gradient_accumulation_steps
            for index in range(parts):
                with clock.encode():
                    micro = (*self.feed(batch.part(index, parts), scale), to_device(np.array([index == 0])))
                self._prepare([(accumulate, micro), (graph, inputs)])
                accumulate(*micro)
        with clock.graph(), self.collective.watching():
            return to_host(graph(*inputs)).copy()

    def _prepare(self, graphs: Sequence[Graph]) -> None:
        """Compile the graphs for inputs of these shapes, unless that is done. The first ones may come from the cache.

        This is no wait for other ranks: compiling takes longer than a collective may.
        """
        shapes = tuple(each.shape for _, inputs in graphs for each in inputs)
        if shapes in self._compiled:
            return
        with counted_compilation():
            if self._folder is not None and not self._compiled:
                facts = (type(self).__name__, self.collective.rank, self.collective.world_size)
                compile_cached(graphs, self.config, self._folder, facts)
            for cell, inputs in graphs:
                cell.compile(*inputs)
        self._compiled.add(shapes)

    def numbers(self, rate: float) -> NDArray[Any]:
        """Return the numbers that `Update` takes, float32, for an update at the present clock."""
        config, progress = self.config, self.state.progress
        # The gradient is that of the scaled loss, summed over ranks and micro-batches.
        divisor = progress.loss_scale.value * self.collective.world_size * config.gradient_accumulation_steps
        update = progress.optimizer_steps + 1
        decay_of = decays(config.ema, update, progress.updated_at_samples, progress.samples_seen)
        shares = [1 - decay_of[name] for name in config.ema.names]
        rule = self.rule.numbers(config.optimizer, update, rate)
        return np.array([1 / divisor, config.optimizer.max_grad_norm, *rule, *shares], np.float32)

    def _blamed(self, votes: NDArray[Any], batch: Batch) -> dict[int, list[int]]:
        """Return rank -> its sample ids, for the ranks whose loss or gradient was not finite. Called by all ranks."""
        sample_ids = self.collective.allgather_object(batch.sample_ids.tolist())
        return {rank: sample_ids[rank] for rank, row in enumerate(votes) if not np.isfinite(row).all()}


def make_graphs(
    config: TrainConfig, loss: DiffusionLoss, space: FlatSpace, local: LocalParts, arrays: Arrays, world_size: int,
    backend: str,
) -> tuple[nn.Cell, ...]:  # fmt: skip
    """Return `WholeStep`, or `Accumulate` and `Apply`.

    There are two for accumulation, and for images of several sizes: only the first is then compiled for each size.
    backend: MindSpore's communication between the ranks, a key of REDUCE_SCATTER
    """
    backward = Backward(loss, space, local.buckets)
    update = Update(arrays, space, local, config.optimizer, world_size, backend)
    if config.gradient_accumulation_steps == 1 and config.data.buckets is None:
        return (WholeStep(backward, update),)
    sums = Sums(local.buckets)
    return Accumulate(backward, sums), Apply(update, sums, config.gradient_accumulation_steps)
