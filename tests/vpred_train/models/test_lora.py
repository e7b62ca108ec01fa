"""Factors beside the networks' own weights: the layer, its gradients, what training changes, and the way to files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from pydantic import ValidationError

from checkpoints_mgr import State
from launcher.contract.config import ConfigError
from support.small_training import batch
from vpred_train.arrays import FloatArray
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import LoraConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.state import TrainState
from vpred_train.engine.step import TrainStep
from vpred_train.models.layers import Linear, LowRank
from vpred_train.models.lora import add_lora
from vpred_train.models.networks import Networks
from vpred_train.models.text_encoder import SelfAttention
from vpred_train.models.weights import get_weights, set_weights
from vpred_train.prepare.recipe import check_lora
from vpred_train.training.export import views_to_export
from vpred_train.weights.lora.factors import attention_targets, factors_of, merged
from vpred_train.weights.lora.files import open_lora, read_factors, write_lora

LORA = LoraConfig(rank=3, alpha=7.0)
BOTH = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def config(train_config: TrainConfig) -> TrainConfig:
    return train_config.model_copy(update={"lora": LORA})


def adapted(model: ModelConfig) -> tuple[Networks, FlatSpace]:
    """Networks whose factors are random, so that they change the output."""
    networks = Networks(model, 0)
    add_lora(networks, LORA, model, BOTH, 0)
    space = FlatSpace(networks, BOTH)
    space.write(np.random.default_rng(3).normal(0, 0.2, space.size).astype(np.float32))
    return networks, space


def outputs(networks: Networks, model: ModelConfig) -> FloatArray:
    rng = np.random.default_rng(1)
    z = rng.standard_normal((2, model.unet.in_channels, 4, 4)).astype(np.float32)
    tokens = rng.integers(0, 49408, (2, model.text_encoder.context_length)).astype(np.int32)
    result: FloatArray = networks(Tensor(z), Tensor(np.array([20, 800], np.float32)), Tensor(tokens)).asnumpy()
    return result


def test_a_linear_layer_with_factors_is_the_papers() -> None:
    """W x + b + alpha / rank * up down x (Hu et al. 2021, eq. 3) in float64, and no change before any training."""
    rng = np.random.default_rng(0)
    layer = Linear(rng, 24, 40)
    x = rng.standard_normal((2, 5, 24)).astype(np.float32)
    before = layer(Tensor(x)).asnumpy()
    layer = Linear(np.random.default_rng(0), 24, 40)
    layer.lora = LowRank(rng, (40, 24), LORA.rank, LORA.scale)
    bound = 1 / np.sqrt(24)
    down = layer.lora.down.asnumpy()
    assert down.shape == (3, 24)
    assert 0.8 * bound < np.abs(down).max() <= bound
    np.testing.assert_array_equal(layer(Tensor(x)).asnumpy(), before)

    up = rng.standard_normal((40, 3)).astype(np.float32)
    layer = Linear(np.random.default_rng(0), 24, 40)
    layer.lora = LowRank(rng, (40, 24), LORA.rank, LORA.scale)
    layer.lora.up.set_data(Tensor(up))
    weight, bias, down = (each.asnumpy().astype(np.float64) for each in (layer.weight, layer.bias, layer.lora.down))
    expected = x @ weight.T + bias + 7 / 3 * (x @ down.T) @ up.astype(np.float64).T
    np.testing.assert_allclose(layer(Tensor(x)).asnumpy(), expected, rtol=0, atol=2e-6 * np.abs(expected).max())


def test_the_packed_projection_is_that_of_its_sum() -> None:
    rng = np.random.default_rng(0)
    with_factors, summed = (SelfAttention(np.random.default_rng(0), 16, 2) for _ in range(2))
    factors = LowRank(rng, (48, 16), LORA.rank, LORA.scale)
    factors.up.set_data(Tensor(rng.standard_normal((48, 3)).astype(np.float32)))
    with_factors.in_proj_lora = factors
    change = LORA.scale * factors.up.asnumpy().astype(np.float64) @ factors.down.asnumpy()
    weight = summed.in_proj_weight
    weight.set_data(Tensor((weight.asnumpy() + change).astype(np.float32)))
    x = Tensor(rng.standard_normal((2, 8, 16)).astype(np.float32))
    mask = Tensor(np.triu(np.full((8, 8), -np.inf, np.float32), 1))
    expected = summed(x, mask).asnumpy()
    np.testing.assert_allclose(with_factors(x, mask).asnumpy(), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_merged_weights_give_the_outputs_of_the_factors(operations: str, model_config: ModelConfig) -> None:
    networks, space = adapted(model_config)
    found = outputs(networks, model_config)
    plain = Networks(model_config, 0)
    unchanged = outputs(plain, model_config)
    set_weights(plain, merged(get_weights(plain), factors_of(views_to_export(space, space.read()), LORA)), BOTH)
    expected = outputs(plain, model_config)
    assert np.abs(expected - unchanged).max() > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_the_trainable_parameters_are_the_factors(model_config: ModelConfig) -> None:
    _, space = adapted(model_config)
    targets = attention_targets(model_config)
    factors = factors_of(views_to_export(space, space.read()), LORA)
    assert {target: (len(each.up), each.down.shape[1]) for target, each in factors.items()} == targets
    assert {(each.rank, each.alpha) for each in factors.values()} == {(3, 7.0)}
    assert len(space.spans) == 2 * len(targets)
    networks = Networks(model_config, 0)
    add_lora(networks, LORA, model_config, ("text_encoder",), 0)
    assert {span.name for span in FlatSpace(networks).spans} == {
        f"text_encoder.transformer.resblocks.0.attn.{place}.{half}"
        for place in ("in_proj_lora", "out_proj.lora")
        for half in ("down", "up")
    }


@pytest.fixture(scope="module")
def step(config: TrainConfig) -> TrainStep:
    networks = Networks(config.model, 0)
    add_lora(networks, LORA, config.model, config.trainable, 0)
    state = TrainState(config, FlatSpace(networks, config.trainable), SingleProcess())
    return TrainStep(config, networks, state, SingleProcess())


def test_steps_change_the_factors_alone_and_a_restored_state_goes_on(
    config: TrainConfig, step: TrainStep, tmp_path: Path
) -> None:
    state: Any = step.state
    before = {name: item.asnumpy().copy() for name, item in step.networks.parameters_and_names()}
    losses = [step(batch(config, number)).loss for number in range(3)]
    after = {name: item.asnumpy() for name, item in step.networks.parameters_and_names()}
    changed = {name for name in after if not np.array_equal(before[name], after[name])}
    assert changed == {span.name for span in state.space.spans}
    assert all(name.rsplit(".", 1)[0].endswith("lora") for name in changed)

    saved = state.to_checkpoint()
    parts = ("model", "ema_constant", "ema_mindone", "ema_power_0_05", "ema_power_0_1", "adam_m", "adam_v")
    assert set(saved.whole) == {f"{part}/{name}" for part in parts for name in changed}
    copy = State(whole={name: value.copy() for name, value in saved.whole.items()}, progress=dict(saved.progress))
    following = [step(batch(config, number)).loss for number in (3, 4)]
    weights, averages = state.weights.copy(), {name: each.copy() for name, each in state.averages.items()}
    state.from_checkpoint(copy)
    state.space.write(state.weights)
    assert [step(batch(config, number)).loss for number in (3, 4)] == following
    np.testing.assert_array_equal(state.weights, weights)
    for name, average in averages.items():
        np.testing.assert_array_equal(state.averages[name], average)
    assert len({*losses, *following}) == 5

    factors = factors_of(views_to_export(state.space, state.weights), LORA)
    write_lora(tmp_path / "raw", factors, "stability", None, config.model)
    read = read_factors(open_lora(tmp_path / "raw"), config.model)
    for target, each in factors.items():
        np.testing.assert_array_equal(read[target].down, each.down)
        np.testing.assert_array_equal(read[target].up, each.up)
        assert read[target].alpha == 7


def test_gradients_are_the_slope_of_the_loss(config: TrainConfig, step: TrainStep) -> None:
    from vpred_train.engine.objective import DiffusionLoss

    space = step.state.space
    start = np.random.default_rng(3).normal(0, 0.2, space.size).astype(np.float32)
    space.write(start)
    data = batch(config, 0)
    z_0 = step.inputs.latents.encode(data.images, [])
    draws = step.objective.draw(data, z_0.shape[1:])
    inputs = step.objective.network_inputs(z_0, draws, step.inputs.tokenizer(data.captions))
    _, gradients = step.loss_and_gradients(*inputs)
    gradient = np.concatenate([tensor.asnumpy().reshape(-1) for tensor in gradients])
    loss = DiffusionLoss(step.networks)
    direction = gradient / np.linalg.norm(gradient)
    losses = []
    for sign in (1, -1):
        space.write(start + np.float32(sign * 1e-2) * direction)
        losses.append(float(loss(*inputs)))
    assert (losses[0] - losses[1]) / 2e-2 == pytest.approx(np.linalg.norm(gradient), rel=2e-2)


def test_lora_needs_weights_and_something_to_adapt(train_config: TrainConfig) -> None:
    recipe = train_config.model_dump() | {"lora": {"rank": 2}}
    with pytest.raises(
        ValidationError, match="the unet would stay random: give pretrained weights for it, or leave lora"
    ):
        TrainConfig.model_validate(recipe)
    given = {"path": "x", "networks": ["unet", "text_encoder"]}
    config = TrainConfig.model_validate(recipe | {"pretrained": given})
    assert config.lora is not None
    assert config.lora.scale == 1
    assert TrainConfig.model_validate(config.model_dump()) == config
    check_lora(config)
    config = TrainConfig.model_validate(recipe | {"pretrained": given, "lora": {"rank": 17}})
    with pytest.raises(
        ConfigError, match=r"lora\.rank: found 17, but an adapted matrix has only 16; give at most that"
    ):
        check_lora(config)
