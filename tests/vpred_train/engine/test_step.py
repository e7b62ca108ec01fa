"""A training step against an independent computation, and the state's way through a checkpoint."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, State
from data import Batch
from support.host_engine import host_step, networks_of
from support.small_training import batch
from vpred_train.config.precision import PrecisionConfig
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.distributed.flat_arrays import FlatArrays
from vpred_train.engine.objective import DiffusionLoss
from vpred_train.engine.step_result import StepClock
from vpred_train.optim.loss_scale import LossScale


@pytest.fixture(scope="module")
def compiled(train_config: TrainConfig) -> tuple[Any, np.ndarray]:
    """One step for all tests, since each new one compiles its graph, and random weights to start from."""
    from vpred_train.models.networks import Networks

    step = host_step(train_config, Networks(train_config.model, train_config.seed))
    weights = step.state.weights
    return step, weights + np.random.default_rng(5).normal(0, 0.05, weights.size).astype(np.float32)


@pytest.fixture
def step(compiled: tuple[Any, np.ndarray]) -> Any:
    """The step with a fresh state."""
    reset(*compiled)
    return compiled[0]


def reset(train_step: Any, start: np.ndarray) -> None:
    """A state that has not begun, with these weights."""
    state = train_step.state
    for values in (state.weights, *state.averages.values()):
        values[:] = start
    for moment in state.optimizer.moments.values():
        moment[:] = 0
    progress = state.progress
    progress.samples_seen = progress.optimizer_steps = progress.updated_at_samples = 0
    progress.loss_scale = LossScale.fresh(PrecisionConfig())
    state.space.write(state.weights)


def inputs_of(step: Any, data: Batch) -> tuple[Any, ...]:
    """The arguments of the loss for a batch."""
    z_0 = step.inputs.latents.encode(data.images)
    inputs: tuple[Any, ...] = step.objective.network_inputs(
        z_0, step.objective.draw(data, z_0.shape[1:]), step.inputs.tokenizer(data.captions)
    )
    return inputs


def test_loss_is_the_mean_square_of_v_minus_prediction(train_config: TrainConfig, step: Any) -> None:
    state = step.state
    data = batch(train_config, 0)
    z_0 = step.inputs.latents.encode(data.images)
    draws = step.objective.draw(data, z_0.shape[1:])
    schedule = make_schedule(train_config.diffusion)
    inputs = inputs_of(step, data)
    alpha, sigma = (
        table[draws.timesteps].astype(np.float64).reshape(-1, 1, 1, 1) for table in (schedule.alpha, schedule.sigma)
    )
    z_t = alpha * z_0 + sigma * draws.noise
    from mindspore import Tensor

    prediction = networks_of(step)(Tensor(z_t.astype(np.float32)), inputs[3], inputs[4]).asnumpy()
    error = (prediction.astype(np.float64) - (alpha * draws.noise - sigma * z_0)) ** 2
    expected = np.mean(error)
    loss = DiffusionLoss(networks_of(step))
    assert float(loss(*inputs)) == pytest.approx(expected, rel=1e-5)
    weight = np.array([0.0, 0.5, 1.0, 3.0])
    weighted = np.mean(weight * error.mean((1, 2, 3)))
    assert float(loss(*inputs[:2], Tensor(weight.astype(np.float32)), *inputs[3:])) == pytest.approx(weighted, rel=1e-5)
    assert step(data).loss == pytest.approx(expected, rel=1e-5)
    assert state.progress.samples_seen == 4


def test_gradient_is_the_slope_of_the_loss(train_config: TrainConfig, step: Any) -> None:
    state = step.state
    data = batch(train_config, 0)
    inputs = inputs_of(step, data)
    _, gradients = step.loss_and_gradients(*inputs)
    gradient = np.concatenate([tensor.asnumpy().reshape(-1) for tensor in gradients])
    loss = DiffusionLoss(networks_of(step))
    start = state.weights.copy()
    direction = gradient / np.linalg.norm(gradient)
    losses = []
    for sign in (1, -1):
        state.space.write(start + np.float32(sign * 3e-3) * direction)
        losses.append(float(loss(*inputs)))
    slope = (losses[0] - losses[1]) / 6e-3
    assert slope == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


def test_training_lowers_the_loss_and_a_restored_state_goes_on_alike(train_config: TrainConfig, step: Any) -> None:
    state = step.state
    losses = [step(batch(train_config, 0)).loss for _ in range(12)]
    assert losses[-1] < losses[0]
    saved = state.to_checkpoint()
    copy = State(whole={name: value.copy() for name, value in saved.whole.items()}, progress=dict(saved.progress))
    following = [step(batch(train_config, number)).loss for number in (1, 2, 3)]

    averages = {name: values.copy() for name, values in state.averages.items()}
    assert set(averages) == {"constant", "mindone", "power_0.05", "power_0.1"}
    state.from_checkpoint(copy)
    assert [step(batch(train_config, number)).loss for number in (1, 2, 3)] == following
    for name, values in averages.items():
        np.testing.assert_array_equal(state.averages[name], values)


def test_recomputed_blocks_and_a_frozen_text_encoder_change_no_gradient(train_config: TrainConfig, step: Any) -> None:
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.host.step import LossAndGradients
    from vpred_train.models.networks import Networks

    data = batch(train_config, 0)
    inputs = inputs_of(step, data)
    loss, gradients = step.loss_and_gradients(*inputs)

    networks = Networks(train_config.model, 0)
    networks.recompute_blocks()
    FlatSpace(networks).write(step.state.weights)
    unet = FlatSpace(networks, ("unet",))
    assert all(span.name.startswith("unet.") for span in unet.spans)
    same_loss, unet_gradients = LossAndGradients(DiffusionLoss(networks), unet.parameters)(*inputs)
    assert float(same_loss) == pytest.approx(float(loss), rel=1e-6)
    expected = dict(zip((span.name for span in step.state.space.spans), gradients, strict=True))
    for span, gradient in zip(unet.spans, unet_gradients, strict=True):
        right = expected[span.name].asnumpy()
        np.testing.assert_allclose(gradient.asnumpy(), right, rtol=1e-4, atol=1e-5 * np.abs(right).max() + 1e-9)


def test_no_two_gradients_share_memory(train_config: TrainConfig, operations: str) -> None:
    """They are summed in place, over micro-batches and ranks: what is shared would be counted twice. MindSpore gives
    equal gradients, as of two biases that are added up, the memory of one."""
    from vpred_train.models.networks import Networks

    step = host_step(train_config, Networks(train_config.model, train_config.seed))
    _, gradient = step._differentiate(batch(train_config, 1), StepClock(step.collective.timer, 0.0))
    places = sorted((array.ctypes.data, array.nbytes) for array in gradient.arrays if array.size)
    assert all(start + size <= following for (start, size), (following, _) in pairwise(places))
    once = gradient[0 : gradient.size].copy()
    gradient.add_(gradient)
    np.testing.assert_array_equal(gradient[0 : gradient.size], 2 * once)


def test_micro_batches_add_up_to_the_batch(train_config: TrainConfig, step: Any) -> None:
    """One step of the optimiser with the same loss, gradient and clock."""
    start = step.state.weights.copy()
    whole = step(batch(train_config, 0))
    moment = step.state.optimizer.moments["adam_m"].copy()  # of one step: the clipped gradient
    reset(step, start)
    step.config = train_config.model_copy(update={"gradient_accumulation_steps": 2})
    parts = step(batch(train_config, 0))
    step.config = train_config
    assert step.state.progress.optimizer_steps == 1
    assert (parts.samples_seen, parts.step) == (whole.samples_seen, whole.step)
    assert parts.loss == pytest.approx(whole.loss, rel=1e-6)
    assert parts.grad_norm == pytest.approx(whole.grad_norm, rel=1e-5)
    np.testing.assert_allclose(
        step.state.optimizer.moments["adam_m"], moment, rtol=1e-5, atol=1e-6 * np.abs(moment).max()
    )


def test_a_checkpoint_of_another_network_is_refused(train_config: TrainConfig, step: Any, tmp_path: Path) -> None:
    saved = step.state.to_checkpoint()
    whole = saved.whole | {"ema_power_0_05/unet.out.2.bias": np.zeros(5, np.float32)}
    CheckpointManager(tmp_path).save(0, State(whole, saved.progress))
    with pytest.raises(CheckpointError, match=r"F32 \[5\] for ema_power_0_05/unet\.out\.2\.bias, needed F32 \[12\]"):
        CheckpointManager(tmp_path).restore(saved)


def test_a_non_finite_gradient_changes_nothing(train_config: TrainConfig, step: Any) -> None:
    state = step.state
    before = state.weights.copy()
    averages = {name: values.copy() for name, values in state.averages.items()}
    data = batch(train_config, 0)
    data.images[0, 0, 0, 0] = np.nan
    result = step(data)
    assert (result.finite, result.nonfinite_samples) == (False, {0: [0, 1, 2, 3]})
    np.testing.assert_array_equal(state.weights, before)
    for name, values in averages.items():
        np.testing.assert_array_equal(state.averages[name], values)
    assert (state.progress.optimizer_steps, state.progress.samples_seen, state.progress.updated_at_samples) == (0, 4, 0)


def scaled(**keys: Any) -> LossScale:
    return LossScale.fresh(PrecisionConfig(loss_scaling="dynamic", **keys))


def with_infinity(step: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the loss is what it is, and one element of the gradient is infinite."""
    differentiate = step._differentiate

    def poisoned(data: Batch, clock: StepClock) -> tuple[float, FlatArrays]:
        loss, gradient = differentiate(data, clock)
        gradient.arrays[3][0] = np.inf
        return loss, gradient

    monkeypatch.setattr(step, "_differentiate", poisoned)


def test_a_loss_scale_changes_no_bit_in_float32(
    train_config: TrainConfig, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All scales that a run goes through are powers of two, and nothing is rounded on the way there and back."""
    start = step.state.weights.copy()
    optimizer = train_config.optimizer.model_copy(update={"max_grad_norm": 0.3})
    monkeypatch.setattr(step, "config", train_config.model_copy(update={"optimizer": optimizer}))
    seen = []
    for scale in (LossScale.fresh(PrecisionConfig()), scaled(loss_scale_window_steps=1, init_loss_scale=2.0**14)):
        reset(step, start)
        step.state.progress.loss_scale = scale
        results = [step(batch(train_config, number)) for number in range(4)]
        moments = [moment.copy() for moment in step.state.optimizer.moments.values()]
        numbers = [(each.loss, each.grad_norm, each.finite) for each in results]
        seen.append((numbers, [each.loss_scale for each in results], [step.state.weights.copy(), *moments]))
    (plain, ones, arrays), (numbers, scales, scaled_arrays) = seen
    assert (ones, scales) == ([1.0] * 4, [2.0**14, 2.0**15, 2.0**16, 2.0**17])
    assert numbers == plain
    assert min(norm for _, norm, _ in plain) > 0.3  # clipping took part
    for found, expected in zip(scaled_arrays, arrays, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_an_overflow_skips_the_step_and_lowers_the_scale_down_to_the_least(
    train_config: TrainConfig, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = step.state
    state.progress.loss_scale = scaled(init_loss_scale=8.0, min_loss_scale=4.0)
    before = state.weights.copy()
    with_infinity(step, monkeypatch)
    results = [step(batch(train_config, number)) for number in range(3)]
    np.testing.assert_array_equal(state.weights, before)
    assert state.progress.optimizer_steps == 0
    assert [each.loss_scale for each in results] == [8, 4, 4]
    assert [(each.finite, each.overflow) for each in results] == [(False, True), (False, False), (False, False)]
    assert [each.samples_seen for each in results] == [4, 8, 12]


def test_a_loss_that_is_not_finite_is_no_overflow(train_config: TrainConfig, step: Any) -> None:
    """No scale would cure it."""
    step.state.progress.loss_scale = scaled()
    data = batch(train_config, 0)
    data.images[0, 0, 0, 0] = np.nan
    result = step(data)
    assert (result.finite, result.overflow) == (False, False)
    assert step.state.progress.loss_scale.value == result.loss_scale == 65536


def test_a_checkpoint_brings_the_scale_back(train_config: TrainConfig, step: Any) -> None:
    state = step.state
    state.progress.loss_scale = scaled(loss_scale_window_steps=3)
    for number in range(4):
        step(batch(train_config, number))
    saved = state.to_checkpoint()
    kept = State(whole=saved.whole, progress=json.loads(json.dumps(saved.progress)))
    state.progress.loss_scale = scaled(loss_scale_window_steps=3)
    state.from_checkpoint(kept)
    assert (state.progress.loss_scale.value, state.progress.loss_scale.updates) == (131072, 1)
    state.progress.loss_scale = LossScale.fresh(PrecisionConfig())  # goes on on an accelerator that needs none
    state.from_checkpoint(kept)
    assert state.progress.loss_scale.value == 1


class RankOneOfTwo(SingleProcess):
    """This process as rank 1 beside a rank 0 whose loss is 0.5."""

    rank, world_size = 1, 2

    def allgather_object(self, value: Any) -> list[Any]:
        return [[0.5, []], value]


def test_the_rank_with_the_non_finite_gradient_is_named(
    train_config: TrainConfig, step: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where its loss is finite; a sum that overflows names nobody."""
    data = batch(train_config, 0)
    monkeypatch.setattr(step, "collective", RankOneOfTwo())
    good = step(data)
    assert (good.finite, good.nonfinite_samples) == (True, {})

    differentiate = step.loss_and_gradients

    def overflowing(*inputs: Any) -> Any:
        loss, gradients = differentiate(*inputs)
        gradients[-1].asnumpy().reshape(-1)[-1] = np.inf
        return loss, gradients

    monkeypatch.setattr(step, "loss_and_gradients", overflowing)
    bad = step(data)
    assert np.isfinite(bad.loss)
    assert (bad.finite, bad.nonfinite_samples) == (False, {1: [0, 1, 2, 3]})

    monkeypatch.setattr(step, "loss_and_gradients", differentiate)
    monkeypatch.setattr(step.state.sharding, "square_sum", lambda _: np.inf)
    lost = step(data)
    assert (lost.finite, lost.nonfinite_samples) == (False, {})
