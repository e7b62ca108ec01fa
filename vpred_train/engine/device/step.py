"""Runs one optimiser step on the device: the batch and a few numbers in, a few numbers out."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mindspore import Tensor

from data import Batch
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.ema.profiles import decays
from vpred_train.engine.device.rules import RULES
from vpred_train.engine.device.state import DeviceState
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.objective import Objective
from vpred_train.engine.step_result import StepResult
from vpred_train.host_copies import to_host
from vpred_train.optim.learning_rate import learning_rate

GraphInputs = tuple[Tensor, ...]


class DeviceStep:
    """Implements `Step` with graphs that keep gradients, optimiser and averages on the device.

    graphs: one graph that makes a step; or two, for a micro-batch and for the update from its sums
    graph_inputs: makes the arguments of `DiffusionLoss` for a batch and a loss scale
    """

    def __init__(
        self,
        config: TrainConfig,
        state: DeviceState,
        collective: Collective,
        inputs: ModelInputs,
        objective: Objective,
        graphs: Sequence[Callable[..., Tensor]],
    ) -> None:
        self.config, self.state, self.collective = config, state, collective
        self.inputs, self.objective, self.graphs = inputs, objective, graphs
        self.rule = RULES[config.optimizer.name]

    def __call__(self, batch: Batch) -> StepResult:
        started_s, waited_s = time.perf_counter(), self.collective.timer.total_s
        config, progress = self.config, self.state.progress
        progress.samples_seen = batch.samples_seen
        scale = progress.loss_scale.value
        rate = learning_rate(config, progress.samples_seen)
        report = self._run(batch, Tensor(self._numbers(rate)))
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
            step_seconds=time.perf_counter() - started_s + batch.wait_s,
            data_wait_seconds=batch.wait_s,
            collective_seconds=self.collective.timer.total_s - waited_s,
        )

    def _run(self, batch: Batch, numbers: Tensor) -> np.ndarray[Any, Any]:
        """Run the step's graphs, and return the numbers of `Update`."""
        parts = self.config.gradient_accumulation_steps
        if len(self.graphs) == 1:
            inputs = (*self._graph_inputs(batch), numbers)
            with self.collective.watching():
                return to_host(self.graphs[0](*inputs)).copy()
        accumulate, apply = self.graphs
        for index in range(parts):
            accumulate(*self._graph_inputs(batch.part(index, parts)), Tensor([index == 0]))
        with self.collective.watching():
            return to_host(apply(numbers)).copy()

    def _graph_inputs(self, batch: Batch) -> GraphInputs:
        z_0, text = self.inputs.of_batch(batch)
        draws = self.objective.draw(batch, z_0.shape[1:])
        return self.objective.network_inputs(z_0, draws, text, self.state.progress.loss_scale.value)

    def _numbers(self, rate: float) -> np.ndarray[Any, Any]:
        """Return the numbers that `Update` takes, float32, for an update at the present clock."""
        config, progress = self.config, self.state.progress
        # The gradient is that of the scaled loss, summed over ranks and micro-batches.
        divisor = progress.loss_scale.value * self.collective.world_size * config.gradient_accumulation_steps
        update = progress.optimizer_steps + 1
        decay_of = decays(config.ema, update, progress.updated_at_samples, progress.samples_seen)
        shares = [1 - decay_of[name] for name in config.ema.names]
        rule = self.rule.numbers(config.optimizer, update, rate)
        return np.array([1 / divisor, config.optimizer.max_grad_norm, *rule, *shares], np.float32)

    def _blamed(self, votes: np.ndarray[Any, Any], batch: Batch) -> dict[int, list[int]]:
        """Return rank -> its sample ids, for the ranks whose loss or gradient was not finite. Called by all ranks."""
        sample_ids = self.collective.allgather_object(batch.sample_ids.tolist())
        return {rank: sample_ids[rank] for rank, row in enumerate(votes) if not np.isfinite(row).all()}
