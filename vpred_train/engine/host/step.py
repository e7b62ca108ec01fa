"""Runs one optimiser step in host memory: batch in, plain numbers out."""

import math
from collections.abc import Callable
from typing import Any

from mindspore import Parameter, ParameterTuple, Tensor, nn, ops

from data import Batch
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_arrays import FlatArrays, apart
from vpred_train.engine.host.state import HostState
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.objective import DiffusionLoss, Objective
from vpred_train.engine.step_result import StepClock, StepResult
from vpred_train.host_copies import to_host
from vpred_train.optim.learning_rate import learning_rate
from vpred_train.optim.optimizers import clip_factor


class LossAndGradients(nn.Cell):
    """Maps the arguments of DiffusionLoss to the loss and the gradient of each of `parameters`."""

    def __init__(self, loss: DiffusionLoss, parameters: list[Parameter]) -> None:
        super().__init__()
        self.loss = loss  # a member, so that the parameters are this cell's too
        self.loss_and_gradients = ops.value_and_grad(loss, None, ParameterTuple(parameters))

    def construct(
        self, z_t: Tensor, target: Tensor, weight: Tensor, timesteps: Tensor, text: Tensor
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return self.loss_and_gradients(z_t, target, weight, timesteps, text)


class HostStep:
    """Implements `Step`: one graph for loss and gradients; collective, clipping and updates in host memory.

    loss_and_gradients: maps the arguments of `DiffusionLoss` to the loss and each parameter's gradient
    """

    def __init__(
        self,
        config: TrainConfig,
        state: HostState,
        collective: Collective,
        inputs: ModelInputs,
        objective: Objective,
        loss_and_gradients: Callable[..., Any],
    ) -> None:
        self.config, self.state, self.collective = config, state, collective
        self.inputs, self.objective, self.loss_and_gradients = inputs, objective, loss_and_gradients

    def __call__(self, batch: Batch) -> StepResult:
        clock = StepClock(self.collective.timer, batch.wait_s)
        state, progress = self.state, self.state.progress
        local_loss, local_gradient = self._accumulate(batch, clock)
        # Checked before `reduce_`, which mixes the ranks' gradients.
        blamed = [] if math.isfinite(local_loss) and local_gradient.is_finite() else batch.sample_ids.tolist()
        gradient = state.sharding.reduce_(local_gradient)
        votes = self.collective.allgather_object([local_loss, blamed])
        loss = sum(rank_loss for rank_loss, _ in votes) / self.collective.world_size
        loss_scale = progress.loss_scale.value
        # The gradient is that of the scaled loss, summed over ranks and micro-batches.
        divisor = loss_scale * self.collective.world_size * self.config.gradient_accumulation_steps
        grad_norm = math.sqrt(state.sharding.square_sum(gradient)) / divisor
        finite = not self.collective.any(not (math.isfinite(grad_norm) and math.isfinite(loss)))
        overflow = not finite and math.isfinite(loss) and progress.loss_scale.can_fall
        progress.samples_seen = batch.samples_seen
        rate = learning_rate(self.config, progress.samples_seen)
        if finite:
            # Clipping, unscaling and the mean are one factor, so that one pass over the gradient suffices.
            factor = clip_factor(grad_norm, self.config.optimizer.max_grad_norm) / divisor
            with clock.update():
                state.update_(gradient, rate, factor)
            progress.loss_scale = progress.loss_scale.after_update()
        elif overflow:
            progress.loss_scale = progress.loss_scale.lowered()
        return StepResult(
            step=progress.samples_seen // self.config.global_batch,
            samples_seen=progress.samples_seen,
            loss=loss,
            grad_norm=grad_norm,
            learning_rate=rate,
            finite=finite,
            overflow=overflow,
            loss_scale=loss_scale,
            nonfinite_samples={rank: sample_ids for rank, (_, sample_ids) in enumerate(votes) if sample_ids},
            **clock.seconds(),
        )

    def _accumulate(self, batch: Batch, clock: StepClock) -> tuple[float, FlatArrays]:
        """Compute this rank's loss and gradient over its micro-batches.

        The loss is their mean. The gradient is the sum of the gradients of their scaled losses.
        """
        parts = self.config.gradient_accumulation_steps
        loss, gradient = self._differentiate(batch.part(0, parts), clock)
        for index in range(1, parts):
            more_loss, more_gradient = self._differentiate(batch.part(index, parts), clock)
            loss += more_loss
            gradient.add_(more_gradient)
        return loss / parts, gradient

    def _differentiate(self, batch: Batch, clock: StepClock) -> tuple[float, FlatArrays]:
        loss_scale = self.state.progress.loss_scale.value
        with clock.encode():
            z_0, text = self.inputs.of_batch(batch)
            draws = self.objective.draw(batch, z_0.shape[1:])
            inputs = self.objective.network_inputs(z_0, draws, text, loss_scale)
        loss, gradients = self.loss_and_gradients(*inputs)
        # On CPU the arrays share the tensors' memory: the graph's gradients are summed and reduced in place.
        arrays = apart(to_host(tensor).reshape(-1) for tensor in gradients)
        return float(to_host(loss)) / loss_scale, FlatArrays(arrays)
