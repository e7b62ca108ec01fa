"""Layers against float64 numpy, and the structure of the networks."""

import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from support import GOLDEN
from support.small_training import MODEL
from vpred_train.config.model import ModelConfig
from vpred_train.models.latents import SpaceToDepth
from vpred_train.models.layers import Conv2d, GroupNorm


def reference_convolution(x: np.ndarray, weight: np.ndarray, stride: int, padding: int, extra: int = 0) -> np.ndarray:
    """The definition, by loops over output pixels, float64."""
    batch, _, height, width = x.shape
    out_channels, _, kernel, _ = weight.shape
    sides = (padding, padding + extra)
    padded = np.pad(x.astype(np.float64), ((0, 0), (0, 0), sides, sides))
    rows, columns = ((side + sum(sides) - kernel) // stride + 1 for side in (height, width))
    out = np.empty((batch, out_channels, rows, columns))
    for i in range(rows):
        for j in range(columns):
            window = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
            out[:, :, i, j] = np.einsum("bcij,ocij->bo", window, weight.astype(np.float64))
    return out


LISTING = GOLDEN / "sd2_names.tsv"
SHAPES = [(1, 1, False, 5, 4), (3, 1, False, 5, 4), (3, 2, False, 5, 7), (3, 2, True, 6, 8), (3, 2, True, 5, 7)]


@pytest.mark.parametrize(("kernel", "stride", "pad_end", "height", "width"), SHAPES)
def test_convolution_and_its_gradients(
    kernel: int, stride: int, pad_end: bool, height: int, width: int, operations: str
) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, height, width)).astype(np.float32)
    cell = Conv2d(rng, 3, 4, kernel, stride=stride, pad_end=pad_end)
    weight, bias = cell.weight.asnumpy(), cell.bias.asnumpy()
    padding, extra = (0, kernel // 2) if pad_end else (kernel // 2, 0)
    expected = reference_convolution(x, weight, stride, padding, extra)
    found = cell(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, expected + bias[:, None, None], rtol=1e-5, atol=1e-5)

    sensitivity = rng.standard_normal(expected.shape).astype(np.float32)

    class Projected(nn.Cell):
        def construct(self, x: Tensor) -> Tensor:
            return (cell(x) * Tensor(sensitivity)).sum()

    dx, (dweight, dbias) = ops.grad(Projected(), 0, (cell.weight, cell.bias))(Tensor(x))
    np.testing.assert_allclose(dbias.asnumpy(), sensitivity.sum((0, 2, 3)), rtol=1e-5, atol=1e-5)
    # The map is linear in each argument: its gradient is found exactly by unit vectors.
    for gradient, argument, place in ((dx, x, 0), (dweight, weight, 1)):
        for flat in rng.choice(argument.size, 12, replace=False):
            unit = np.zeros(argument.size)
            unit[flat] = 1
            pair = [x, weight]
            pair[place] = unit.reshape(argument.shape)
            slope = (reference_convolution(pair[0], pair[1], stride, padding, extra) * sensitivity).sum()
            assert gradient.asnumpy().reshape(-1)[flat] == pytest.approx(slope, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("on_cpu", [True, False])
def test_group_norm_and_its_gradients(on_cpu: bool, operations: str) -> None:
    """Each way against float64, three times over: batch normalisation must not keep statistics."""
    rng = np.random.default_rng(1)
    x, slope = (rng.normal(1, 2, (2, 6, 3, 4)).astype(np.float32) for _ in range(2))
    cell = GroupNorm(3, 6)
    cell.as_batch_norm = on_cpu
    weight, bias = rng.normal(1, 0.3, 6).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    cell.weight.set_data(Tensor(weight))
    cell.bias.set_data(Tensor(bias))
    grouped = x.astype(np.float64).reshape(2, 3, -1)
    deviation = np.sqrt(grouped.var(-1, keepdims=True) + 1e-5)
    normed = ((grouped - grouped.mean(-1, keepdims=True)) / deviation).reshape(x.shape)
    for _ in range(3):
        found = cell(Tensor(x)).asnumpy()
        np.testing.assert_allclose(found, normed * weight[:, None, None] + bias[:, None, None], atol=2e-5)

    class Projected(nn.Cell):
        def construct(self, x: Tensor) -> Tensor:
            return (cell(x) * Tensor(slope)).sum()

    dx, (dweight, dbias) = ops.grad(Projected(), 0, (cell.weight, cell.bias))(Tensor(x))
    np.testing.assert_allclose(dweight.asnumpy(), (slope * normed).sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(dbias.asnumpy(), slope.sum((0, 2, 3)), rtol=1e-4, atol=1e-4)
    # Wu & He's gradient: what is left of the incoming one without its mean and its share along the output.
    incoming = (slope * weight[:, None, None].astype(np.float64)).reshape(2, 3, -1)
    along = normed.reshape(2, 3, -1)
    rest = incoming - incoming.mean(-1, keepdims=True) - along * (incoming * along).mean(-1, keepdims=True)
    np.testing.assert_allclose(dx.asnumpy(), (rest / deviation).reshape(x.shape), rtol=1e-4, atol=1e-5)


def test_attention_and_timestep_embedding_against_float64(operations: str) -> None:
    from vpred_train.models.attention import Attention
    from vpred_train.models.layers import GELU
    from vpred_train.models.unet import timestep_embedding

    rng = np.random.default_rng(1)
    q, k, v = (rng.standard_normal((1, tokens, 8)).astype(np.float32) for tokens in (3, 5, 5))
    in_heads = [x.astype(np.float64).reshape(1, -1, 2, 4) for x in (q, k, v)]
    logits = np.einsum("bnhc,bmhc->bhnm", *in_heads[:2]) / 2
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    found = Attention(2, 4)(Tensor(q), Tensor(k), Tensor(v)).asnumpy()
    expected = np.einsum("bhnm,bmhc->bnhc", weights, in_heads[2]).reshape(1, 3, 8)
    np.testing.assert_allclose(found, expected, atol=1e-5)

    # 2 heads x 5 keys x 1 query = 10 logits: three parts, the same result; so do 2 queries and 1 left over.
    for max_logits in (10, 20):
        in_parts = Attention(2, 4, max_logits)
        np.testing.assert_allclose(in_parts(Tensor(q), Tensor(k), Tensor(v)).asnumpy(), found, atol=1e-6)
        gradients = ops.grad(in_parts, (0, 1, 2))(Tensor(q), Tensor(k), Tensor(v))
        whole = ops.grad(Attention(2, 4), (0, 1, 2))(Tensor(q), Tensor(k), Tensor(v))
        for gradient, right in zip(gradients, whole, strict=True):
            np.testing.assert_allclose(gradient.asnumpy(), right.asnumpy(), atol=1e-6)

    from scipy.stats import norm

    values = np.linspace(-5, 5, 21)
    np.testing.assert_allclose(
        GELU()(Tensor(values.astype(np.float32))).asnumpy(), values * norm.cdf(values), atol=1e-5
    )

    timesteps = np.array([0.0, 7.0, 999.0], np.float32)
    angles = timesteps[:, None] * 10000.0 ** (-np.arange(4) / 4)
    expected = np.concatenate((np.cos(angles), np.sin(angles)), -1)
    np.testing.assert_allclose(timestep_embedding(Tensor(timesteps), 8).asnumpy(), expected, atol=1e-4)


class Zeros:
    """A generator of 1.3 billion numbers in no time, where shapes alone count."""

    def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)

    normal = uniform

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape, np.float32)


def test_sd2_at_full_size_has_the_published_tensors() -> None:
    """All names, shapes and parameter counts of the three networks (the listing is MindONE's)."""
    from vpred_train.config.model import TextEncoderConfig, UNetConfig, VaeConfig
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.models.autoencoder_kl import AutoencoderKL
    from vpred_train.models.text_encoder import TextEncoder
    from vpred_train.models.unet import UNet

    listing = [line.split("\t") for line in LISTING.read_text().splitlines() if not line.startswith("#")]
    shapes = {row[3]: tuple(map(int, row[1].split("x"))) for row in listing}
    rng = Zeros()
    for build, prefix, tensors, parameters in (
        (lambda: UNet(UNetConfig(), rng), "model.diffusion_model.", 686, 865_910_724),
        (lambda: TextEncoder(TextEncoderConfig(), rng), "cond_stage_model.model.", 280, 340_387_840),
        (lambda: AutoencoderKL(VaeConfig(), rng), "first_stage_model.", 248, 83_653_863),
    ):
        space = FlatSpace(build())
        assert {prefix + span.name: span.shape for span in space.spans} == {
            name: shape for name, shape in shapes.items() if name.startswith(prefix)
        }
        assert (len(space.spans), space.size) == (tensors, parameters)


def test_unet_has_stable_diffusions_names() -> None:
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.models.networks import Networks

    networks = Networks(ModelConfig.model_validate(MODEL | {"unet": MODEL["unet"] | {"attention_levels": [1]}}), 0)
    names = {span.name for span in FlatSpace(networks).spans}
    assert {
        "unet.time_embed.2.weight",
        "unet.input_blocks.0.0.weight",
        "unet.input_blocks.1.0.in_layers.2.weight",
        "unet.input_blocks.2.0.op.weight",
        "unet.input_blocks.3.0.skip_connection.weight",
        "unet.input_blocks.3.1.transformer_blocks.0.attn2.to_out.0.weight",
        "unet.input_blocks.3.1.transformer_blocks.0.ff.net.0.proj.weight",
        "unet.middle_block.1.proj_in.weight",
        "unet.output_blocks.1.2.conv.weight",
        "unet.out.2.bias",
        "text_encoder.transformer.resblocks.0.attn.in_proj_weight",
        "text_encoder.positional_embedding",
        "text_encoder.ln_final.bias",
    } <= names
    z = Tensor(np.ones((1, 12, 4, 4), np.float32))
    prediction = networks(z, Tensor(np.zeros(1, np.float32)), Tensor(np.zeros((1, 8), np.int32)))
    assert prediction.shape == (1, 12, 4, 4)


def test_a_fresh_unet_lets_its_input_through(model_config: ModelConfig) -> None:
    """The first and last kernel make a projection (here 8 channels of 12), and the prediction follows z_t."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.models.networks import Networks

    networks = Networks(model_config, 0)
    space = FlatSpace(networks)
    weights = space.views(space.read())
    first, last = weights["unet.input_blocks.0.0.weight"], weights["unet.out.2.weight"]
    through = last[:, :, 1, 1] @ first[:, :, 1, 1]
    np.testing.assert_allclose(through @ through, through, atol=1e-6)
    assert np.trace(through) == pytest.approx(8, abs=1e-5)
    for kernel in (first, last):
        assert np.count_nonzero(kernel) == np.count_nonzero(kernel[:, :, 1, 1])
    z = np.random.default_rng(5).standard_normal((2, 12, 4, 4)).astype(np.float32)
    prediction = networks(Tensor(z), Tensor(np.array([3.0, 800.0], np.float32)), Tensor(np.zeros((2, 8), np.int32)))
    assert np.corrcoef(z.reshape(-1), prediction.asnumpy().reshape(-1))[0, 1] > 0.5


def test_flattened_weights_are_the_only_copy(model_config: ModelConfig) -> None:
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.models.networks import Networks

    space = FlatSpace(Networks(model_config, 0), ("unet",))
    before = space.read()
    values = space.flatten()
    np.testing.assert_array_equal(values, before)
    assert values.shape == (space.size,)
    assert all(np.shares_memory(parameter.asnumpy(), values) for parameter in space.parameters)


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_space_to_depth_is_lossless_and_local(factor: int) -> None:
    images = np.random.default_rng(4).standard_normal((2, 3, 8, 16)).astype(np.float32)
    folded = SpaceToDepth(factor).encode(images)
    assert folded.shape == (2, 3 * factor**2, 8 // factor, 16 // factor)
    np.testing.assert_array_equal(SpaceToDepth(factor).decode(folded), images)
    np.testing.assert_array_equal(np.sort(folded[0, :, 0, 0]), np.sort(images[0, :, :factor, :factor].reshape(-1)))
