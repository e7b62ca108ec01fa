"""float16 for real, on MindSpore's CPU kernels: against float32, and where float16 alone would fail.

u is float16's unit roundoff: what one rounding changes, relatively.
"""

import math
from typing import Any

import numpy as np
import pytest
from mindspore import Tensor
from mindspore import dtype as mstype

from vpred_train.config.model import ModelConfig, VaeConfig
from vpred_train.models.attention import Attention
from vpred_train.models.layers import GELU, GroupNorm, LayerNorm, Linear, LowRank

U = 2.0**-11


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def half(values: np.ndarray) -> Tensor:
    return Tensor(values.astype(np.float16))


def error(found: np.ndarray, expected: np.ndarray) -> float:
    """|found - expected| / |expected|, of the whole array."""
    difference = found.astype(np.float64) - expected.astype(np.float64)
    return float(np.linalg.norm(difference) / np.linalg.norm(expected.astype(np.float64)))


@pytest.fixture(scope="module")
def gradients(model_config: ModelConfig) -> Any:
    """(dtype, weight of the loss) -> loss and flat float32 gradient of the same network on the same batch."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.objective import DiffusionLoss
    from vpred_train.engine.step import LossAndGradients
    from vpred_train.models.networks import Networks

    graphs = {}
    for dtype in ("float32", "float16"):
        networks = Networks(model_config, 0, dtype)
        space = FlatSpace(networks)
        assert {parameter.dtype for parameter in space.parameters} == {mstype.float32}
        space.write(space.read() + 0.05 * random(space.size))
        graphs[dtype] = LossAndGradients(DiffusionLoss(networks), space.parameters)
    z_t, target = random(2, 12, 4, 4), random(2, 12, 4, 4, seed=1)
    tokens = np.random.default_rng(0).integers(0, 49408, (2, 8)).astype(np.int32)

    def of(dtype: str, weight: float) -> tuple[float, np.ndarray]:
        numbers = (np.full(2, weight, np.float32), np.array([20, 700], np.float32))
        loss, found = graphs[dtype](*(Tensor(each) for each in (z_t, target, *numbers, tokens)))
        assert {tensor.dtype for tensor in (loss, *found)} == {mstype.float32}
        return float(loss), np.concatenate([tensor.asnumpy().reshape(-1) for tensor in found])

    return of


def test_loss_and_gradient_are_those_of_float32_within_the_roundings(gradients: Any) -> None:
    """Along the deepest path some 60 results are rounded, each by at most u of itself."""
    loss, gradient = gradients("float32", 1.0)
    half_loss, half_gradient = gradients("float16", 1024.0)
    assert 0 < abs(half_loss / 1024 / loss - 1) < 60 * U
    assert U / 60 < error(half_gradient / 1024, gradient) < 60 * U


def test_a_loss_scale_keeps_the_gradients_that_float16_would_lose(gradients: Any) -> None:
    """float16 ends at 2^-24. A loss that small has no gradient left; its scale brings all of it back."""
    _, gradient = gradients("float32", 2.0**-24)
    assert error(gradients("float16", 2.0**-24)[1], gradient) > 0.9
    assert error(gradients("float16", 2.0**-4)[1] * 2.0**-20, gradient) < 60 * U


def test_too_large_a_scale_overflows_the_gradient_and_not_the_loss(gradients: Any) -> None:
    loss, gradient = gradients("float16", 2.0**24)
    assert math.isfinite(loss)
    assert not np.isfinite(gradient).all()


def test_norms_take_their_statistics_in_float32() -> None:
    """Squares of 1000 and more are beyond float16."""
    x = half(1000 * random(2, 8, 4, 4))
    group = GroupNorm(4, 8)(x)
    assert group.dtype == mstype.float16
    rows = x.asnumpy().astype(np.float64).reshape(2, 4, -1)
    expected = (rows - rows.mean(2, keepdims=True)) / rows.std(2, keepdims=True)
    assert error(group.asnumpy().reshape(2, 4, -1), expected) < U
    layer = LayerNorm(4)(x)
    assert layer.dtype == mstype.float16
    rows = x.asnumpy().astype(np.float64)
    assert error(layer.asnumpy(), (rows - rows.mean(3, keepdims=True)) / rows.std(3, keepdims=True)) < U


def test_attention_bears_products_beyond_float16() -> None:
    """q k^T of 2.6e5, as Stable Diffusion 2.1 reaches them; scaled they are numbers of float16, 32768 and 32752."""
    channels = 64
    q, k = np.full((1, 2, channels), 64, np.float32), np.full((1, 3, channels), 64, np.float32)
    k[0, 1, 0] = 62
    v = random(1, 3, channels)
    found = Attention(1, channels)(half(q), half(k), half(v))
    logits = (q.astype(np.float64) @ k.astype(np.float64).transpose(0, 2, 1)) / math.sqrt(channels)
    assert logits[0, 0].tolist() == [32768, 32752, 32768]
    weights = np.exp(logits - logits.max())
    assert found.dtype == mstype.float16
    assert error(found.asnumpy(), weights / weights.sum(2, keepdims=True) @ v.astype(np.float64)) < 3 * U


def test_gelu_keeps_its_digits_where_one_plus_erf_cancels() -> None:
    x = half(np.linspace(-4, -1, 50))
    expected = [0.5 * value * math.erfc(-value / math.sqrt(2)) for value in x.asnumpy().astype(float)]
    assert error(GELU()(x).asnumpy(), np.array(expected)) < U


def test_low_rank_factors_are_computed_with_in_the_inputs_dtype() -> None:
    layer = Linear(np.random.default_rng(0), 16, 8)
    layer.lora = LowRank(np.random.default_rng(1), (8, 16), 2, 0.5)
    layer.lora.up.set_data(Tensor(random(8, 2)))
    x = random(5, 16).astype(np.float16)
    found = layer(Tensor(x))
    low = 0.5 * layer.lora.up.asnumpy().astype(np.float64) @ layer.lora.down.asnumpy()
    expected = x.astype(np.float64) @ (layer.weight.asnumpy() + low).T + layer.bias.asnumpy()
    assert found.dtype == mstype.float16
    assert 0 < error(found.asnumpy(), expected) < 6 * U  # weight, down, up, two products, sum


def test_the_autoencoder_takes_and_gives_float32() -> None:
    from vpred_train.models.autoencoder_kl import AutoencoderKL

    config = VaeConfig(channels=8, channel_multipliers=(1,), res_blocks=1, norm_groups=4)
    images = random(1, 3, 8, 8)
    found = {}
    for dtype in ("float32", "float16"):
        vae = AutoencoderKL(config, np.random.default_rng(0), dtype)
        moments = vae.encode(Tensor(images))
        found[dtype] = [moments, vae.decode(moments[:, :4])]
        assert {tensor.dtype for tensor in found[dtype]} == {mstype.float32}
    for single, double in zip(found["float16"], found["float32"], strict=True):
        assert 0 < error(single.asnumpy(), double.asnumpy()) < 40 * U  # two halves of some 20 layers
