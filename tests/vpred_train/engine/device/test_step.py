"""The device engine against the host engine, from the same weights and batches."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from data import Batch
from launcher.contract.config import ConfigError
from support.device_engine import FLAT_UNET, OPTIMIZERS, batches, device_step, pair, recipe, same_bits, tensors, worst
from support.host_engine import host_step
from support.small_training import MODEL
from vpred_train.config.optimizer import DEVICE_OPTIMIZERS
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import LoraConfig
from vpred_train.engine.device.rules import RULES
from vpred_train.host_copies import copied
from vpred_train.optim.optimizers import OPTIMIZERS as OF_THE_HOST

REPORT_BYTES = 64 + 8  # of a step that goes to the host, on one rank
VAE = {"latent_channels": 4, "channels": 4, "channel_multipliers": [1, 2], "res_blocks": 1, "norm_groups": 2}


def state_of(step: Any) -> dict[str, Any]:
    return tensors(step.state.to_checkpoint(), step.state.space)


def assert_alike(host: Any, device: Any, data: list[Batch], tolerance: float = 1e-5) -> None:
    """Both steps train on the batches and report the same, and their states end alike."""
    for each in data:
        before, counted = state_of(device), copied.to_host_bytes
        found = device(each)
        counted = copied.to_host_bytes - counted
        expected = host(each)
        assert counted <= REPORT_BYTES
        for name in ("finite", "overflow", "loss_scale", "nonfinite_samples", "step", "samples_seen", "learning_rate"):
            assert getattr(found, name) == getattr(expected, name)
        if expected.finite:
            assert found.loss == pytest.approx(expected.loss, rel=1e-6)
            assert found.grad_norm == pytest.approx(expected.grad_norm, rel=1e-5)
        else:
            assert same_bits(state_of(device), before)
        if each.samples_seen == 2 * len(each.captions):  # errors of one bucket are plain while the state is young
            assert worst(state_of(device), state_of(host)) < tolerance
    assert worst(state_of(device), state_of(host)) < tolerance
    progress, expected_progress = (step.state.progress.to_json() for step in (device, host))
    assert progress == expected_progress
    shown = {f"model/{name}": values for name, values in device.state.space.views(device.state.space.read()).items()}
    assert same_bits(shown, {name: values for name, values in state_of(device).items() if name in shown})


@pytest.mark.parametrize(
    ("optimizer", "accumulation"),
    [(name, parts) for name in OPTIMIZERS for parts in (1, 2) if (name, parts) != ("sgd without momentum", 2)],
)
def test_ten_steps_are_those_of_the_host_engine(optimizer: str, accumulation: int) -> None:
    """The fourth batch is poisoned: it is skipped, and its rank blamed."""
    config = recipe(optimizer, gradient_accumulation_steps=accumulation)
    host, device = pair(config)
    assert len(device.state.local.buckets) > 4
    assert_alike(host, device, batches(config, 10, bad=3))
    assert device.state.progress.optimizer_steps == 9


def test_both_engines_have_the_same_optimisers() -> None:
    assert RULES.keys() == OF_THE_HOST.keys() == set(DEVICE_OPTIMIZERS)


def test_an_overflow_lowers_the_scale_and_changes_nothing_else() -> None:
    precision = {"compute_dtype": "float16", "loss_scaling": "dynamic", "init_loss_scale": 2.0**24}
    # By SGD: Adam makes whole steps of the signs of tiny gradients, which rounding to float16 turns.
    config = recipe("sgd", precision=precision | {"loss_scale_window_steps": 2})
    host, device = pair(config)
    overflows, scales = 0, []
    for each in batches(config, 12):
        before, counted = state_of(device), device.state.progress.optimizer_steps
        found, expected = device(each), host(each)
        assert (found.finite, found.overflow, found.loss_scale) == (
            expected.finite,
            expected.overflow,
            expected.loss_scale,
        )
        scales.append(found.loss_scale)
        overflows += found.overflow
        if found.overflow:
            assert same_bits(state_of(device), before)
            assert device.state.progress.optimizer_steps == counted
        else:
            assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    assert overflows >= 2
    changes = [after - before for before, after in pairwise(scales)]
    assert min(changes) < 0 < max(changes)


def test_latents_of_an_autoencoder_stay_on_the_device() -> None:
    """Online encoding, a text encoder that learns, two image sizes: the first graph is compiled for each."""
    model = MODEL | {"space_to_depth": 1, "vae": VAE, "unet": FLAT_UNET | {"in_channels": 4}}
    data: dict[str, Any] = {"path": ".", "resolution": 128, "buckets": {}}
    config = recipe(model=model, data=data, pretrained={"path": "x"})
    host, device = pair(config)
    sizes = [(8, 8), (8, 12)] * 2
    assert len(device.graphs) == 2
    assert_alike(host, device, [resized(*each) for each in zip(batches(config, 4), sizes, strict=True)])


def resized(whole: Batch, size: tuple[int, int]) -> Batch:
    rng = np.random.default_rng(whole.samples_seen)
    images = rng.uniform(-1, 1, (len(whole.captions), 3, *size)).astype(np.float32)
    return replace(whole, arrays={"images": images})


class Features:
    """Inputs as a cache gives them: the text as features, so that no text encoder is in the graph."""

    def __init__(self, config: TrainConfig) -> None:
        self.shape = (config.model.text_encoder.context_length, config.model.text_encoder.width)

    def of_batch(self, batch: Batch) -> Any:
        rng = np.random.default_rng(batch.samples_seen)
        images = batch.images.reshape(len(batch.images), 12, 4, 4)
        return images, rng.standard_normal((len(images), *self.shape)).astype(np.float32)


@pytest.mark.parametrize("lora", [LoraConfig(rank=3, alpha=7.0), None], ids=["lora", "all weights"])
def test_cached_inputs_and_recomputation_change_no_number(lora: LoraConfig | None) -> None:
    from vpred_train.models.lora import add_lora
    from vpred_train.models.networks import Networks

    config = recipe(trainable=["unet"], recompute=True, pretrained={"path": "x", "networks": ["text_encoder"]})
    config = config.model_copy(update={"lora": lora})
    steps = []
    for make in (host_step, device_step):
        networks = Networks(config.model, 0)
        if lora is not None:
            add_lora(networks, lora, config.model, config.trainable, 0)
        networks.recompute_blocks()
        steps.append(make(config, networks, inputs=Features(config)))
    assert_alike(*steps, batches(config, 3))


def test_every_parameter_of_the_state_is_a_member_of_the_graphs() -> None:
    """Otherwise a graph from the cache would train memory of its own."""
    _, device = pair(recipe("sgd", gradient_accumulation_steps=2))
    accumulate, apply = device.graphs
    members = {id(each) for each in apply.get_parameters()}
    arrays = device.state.arrays
    assert {id(each) for name in arrays.components for each in arrays.of(name)} <= members
    assert {id(each) for each in device.state.space.parameters} <= members
    assert {id(each) for each in device.state.space.parameters} <= {id(each) for each in accumulate.get_parameters()}


def test_a_norm_that_float32_cannot_hold_is_an_overflow() -> None:
    """The host engine sums squares in float64. On the device a smaller scale helps, and is found by itself."""
    config = recipe(precision={"loss_scaling": "dynamic", "init_loss_scale": 2.0**24})
    _, device = pair(config)
    first, second = batches(config, 2)
    device(first)
    before = state_of(device)
    found = device(replace(second, arrays={"images": second.images * np.float32(1e14)}))
    assert math.isfinite(found.loss)
    assert (found.finite, found.overflow, found.nonfinite_samples) == (False, True, {0: [0, 1, 2, 3]})
    assert same_bits(state_of(device), before)
    assert device.state.progress.loss_scale.value == 2.0**23


class MoreRanks:
    """Not a collective of MindSpore's."""

    rank, world_size = 0, 2


def test_ranks_that_communicate_in_host_memory_are_refused() -> None:
    from vpred_train.models.networks import Networks

    config = recipe()
    collective: Any = MoreRanks()
    with pytest.raises(ConfigError, match=r"engine: found 'device', but .*launcher\.init=dynamic_cluster"):
        device_step(config, Networks(config.model, 0), collective)
