"""The state on the device: what it shows, and its way through checkpoints to the host engine and back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from checkpoints_mgr import CheckpointManager
from support.device_engine import batches, pair, recipe, same_bits, tensors, worst
from vpred_train.config.optimizer import component_of
from vpred_train.host_copies import copied


@pytest.fixture(scope="module")
def trained() -> tuple[Any, Any]:
    """Both engines after three steps, with all averages; two micro-batches each."""
    ema = {"profiles": ["constant", "mindone", "power"], "sigma_rel": [0.2, 0.28]}
    config = recipe(gradient_accumulation_steps=2, optimizer={"name": "sgd", "learning_rate": 0.3}, ema=ema)
    host, device = pair(config)
    for each in batches(config, 3):
        host(each)
        device(each)
    return host, device


@pytest.mark.parametrize("average", ["constant", "mindone", "power_0.2", "power_0.28"])
def test_an_average_is_shown_and_the_weights_return_bit_for_bit(trained: tuple[Any, Any], average: str) -> None:
    host, device = trained
    before = device.state.space.read()
    expected = host.state.full(average)
    component = component_of(average)
    kept = {
        name: values for name, values in device.state.to_checkpoint().whole.items() if name.startswith(f"{component}/")
    }
    assert np.abs(expected - before).max() > 1e-5
    with device.state.showing(average):
        shown = device.state.space.read()
    assert same_bits({f"{component}/{name}": each for name, each in device.state.space.views(shown).items()}, kept)
    np.testing.assert_allclose(shown, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert device.state.space.read().tobytes() == before.tobytes()
    assert device.state.full(average).tobytes() == shown.tobytes()
    assert device.state.full(None).tobytes() == before.tobytes()


def test_weights_return_after_an_error_inside_the_block(trained: tuple[Any, Any]) -> None:
    state = trained[1].state
    before = state.space.read()
    with pytest.raises(ZeroDivisionError), state.showing("constant"):
        raise ZeroDivisionError
    assert state.space.read().tobytes() == before.tobytes()


def test_showing_an_average_copies_nothing_but_its_choice_to_the_host(trained: tuple[Any, Any]) -> None:
    state = trained[1].state
    counted = copied.to_host_bytes
    with state.showing("constant"):
        pass
    assert copied.to_host_bytes - counted <= 64


def test_a_checkpoint_is_a_copy(trained: tuple[Any, Any]) -> None:
    _, device = trained
    kept = device.state.to_checkpoint()
    before = {name: values.copy() for name, values in kept.whole.items()}
    device(batches(recipe(), 1, first=3)[0])
    assert same_bits(kept.whole, before)
    device.state.from_checkpoint(kept)
    assert same_bits(device.state.to_checkpoint().whole, before)


def test_a_run_goes_from_engine_to_engine_and_back(tmp_path: Path) -> None:
    """host -> device -> host: each takes over the other's bits, and the steps after are alike."""
    config = recipe("sgd")
    host, device = pair(config)
    first, second, third = batches(config, 3)
    for each in (host, device):
        each(first)
    device(second)  # the device engine's state is another one, and later
    manager = CheckpointManager(tmp_path)
    manager.save(1, host.state.to_checkpoint())
    restored = manager.restore(device.state.to_checkpoint(), 1)
    assert restored is not None
    device.state.from_checkpoint(restored.state)
    assert device.state.progress == host.state.progress
    assert same_bits(device.state.to_checkpoint().whole, host.state.to_checkpoint().whole)
    expected, found = host(second), device(second)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)

    manager.save(2, device.state.to_checkpoint())
    other, _ = pair(config)
    restored = manager.restore(other.state.to_checkpoint(), 2)
    assert restored is not None
    other.state.from_checkpoint(restored.state)
    assert other.state.progress == device.state.progress
    assert same_bits(other.state.to_checkpoint().whole, device.state.to_checkpoint().whole)
    assert other(third).loss == pytest.approx(device(third).loss, rel=1e-6)
    states = [tensors(each.state.to_checkpoint(), each.state.space) for each in (other, device)]
    assert worst(*states) < 1e-5
