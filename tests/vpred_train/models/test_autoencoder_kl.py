"""A small autoencoder of SD2's structure against diffusers (tests/golden/make_vae.py); latents and tiles."""

from itertools import pairwise

import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from pydantic import ValidationError

from golden.seeded import weights
from support import GOLDEN
from vpred_train.config.model import VaeConfig
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.models.autoencoder_kl import AutoencoderKL
from vpred_train.models.latents import LatentSpace, decode_tiles, tile_weights

CONFIG = VaeConfig(channels=32, channel_multipliers=(1, 2, 3, 3), norm_groups=16)
TINY = VaeConfig(channels=4, channel_multipliers=(1, 2), res_blocks=1, norm_groups=2, scale=0.5)
GOLDEN = np.load(GOLDEN / "vae.npz")


class Both(nn.Cell):
    """Encoder and decoder in one graph."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def construct(self, images: Tensor, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.autoencoder.encode(images), self.autoencoder.decode(latents)


@pytest.fixture(scope="module")
def tiny() -> AutoencoderKL:
    return AutoencoderKL(TINY, np.random.default_rng(0))


def test_moments_images_and_names_equal_diffusers(operations: str) -> None:
    autoencoder = AutoencoderKL(CONFIG, np.random.default_rng(0))
    space = FlatSpace(autoencoder)
    assert sorted(span.name for span in space.spans) == GOLDEN["names"].tolist()
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    found = Both(autoencoder)(Tensor(GOLDEN["images"]), Tensor(GOLDEN["latents"]))
    for name, tensor in zip(("moments", "decoded"), found, strict=True):
        expected = GOLDEN[name]
        assert tensor.shape == expected.shape
        assert np.abs(tensor.asnumpy() - expected).max() <= 1e-4 * np.abs(expected).max(), name

    latents = LatentSpace(autoencoder, CONFIG)
    mean = GOLDEN["moments"][:, :4]
    np.testing.assert_allclose(latents.encode(GOLDEN["images"]), 0.18215 * mean, atol=1e-4 * np.abs(mean).max())
    images = latents.decode(GOLDEN["latents"] * np.float32(0.18215))
    assert np.abs(images - GOLDEN["decoded"]).max() <= 1e-4 * np.abs(GOLDEN["decoded"]).max()


def test_posterior_clips_the_log_variance_and_lets_gradients_through(tiny: AutoencoderKL) -> None:
    moments = np.zeros((1, 8, 1, 2), np.float32)
    moments[0, :4, 0, 0] = (-40, 40, 1, 2)
    moments[0, 4:, 0, 0] = (-40, 40, -29.5, 19.5)

    class Clipped(nn.Cell):
        def construct(self, moments: Tensor) -> tuple[Tensor, Tensor]:
            return tiny.posterior(moments)

    mean, log_variance = Clipped()(Tensor(moments))
    assert mean.asnumpy()[0, :, 0, 0].tolist() == [-40, 40, 1, 2]
    assert log_variance.asnumpy()[0, :, 0, 0].tolist() == [-30, 20, -29.5, 19.5]


def test_a_sample_is_the_scaled_reparameterised_draw(tiny: AutoencoderKL) -> None:
    """(mean + exp(log variance / 2) noise) * scale, Kingma & Welling 2014, section 2.4."""
    rng = np.random.default_rng(1)
    space = LatentSpace(tiny, TINY)
    images = rng.uniform(-1, 1, (2, 3, 6, 10)).astype(np.float32)
    generators = [np.random.default_rng(seed) for seed in (7, 8)]
    noise = np.stack([np.random.default_rng(seed).standard_normal((4, 3, 5), np.float32) for seed in (7, 8)])
    moments = Both(tiny)(Tensor(images), Tensor(noise))[0].asnumpy().astype(np.float64)
    expected = 0.5 * (moments[:, :4] + np.exp(moments[:, 4:] / 2) * noise)
    found = space.encode(images, generators)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(space.encode(images), 0.5 * moments[:, :4], rtol=1e-5, atol=1e-6)


def test_images_must_be_divisible(tiny: AutoencoderKL) -> None:
    with pytest.raises(ValueError, match="6 x 7 pixels: the sides must be multiples of 2"):
        LatentSpace(tiny, TINY).encode(np.zeros((1, 3, 6, 7), np.float32))


def test_norm_groups_must_divide() -> None:
    with pytest.raises(ValidationError, match="channels 24 is not divisible by norm_groups 16"):
        VaeConfig(channels=24, norm_groups=16)


def test_gradients_reach_every_weight(tiny: AutoencoderKL) -> None:
    class Loss(nn.Cell):
        def construct(self, images: Tensor, target: Tensor) -> Tensor:
            mean, log_variance = tiny.posterior(tiny.encode(images))
            return ((tiny.decode(mean) - target) ** 2).mean() + (log_variance**2).mean()

    rng = np.random.default_rng(2)
    images, target = (Tensor(rng.uniform(-1, 1, (2, 3, 6, 8)).astype(np.float32)) for _ in range(2))
    loss = Loss()
    parameters = FlatSpace(tiny).parameters
    gradients = ops.value_and_grad(loss, None, parameters)(images, target)[1]
    rows = [(span.name, gradient.asnumpy()) for span, gradient in zip(FlatSpace(tiny).spans, gradients, strict=True)]
    # A bias of k adds the same to all logits of a query: the softmax does not see it.
    assert [name for name, gradient in rows if not np.abs(gradient).max() > 1e-7 and not name.endswith("k.bias")] == []
    # Central differences along each of a few tensors' own gradient.
    by_name = dict(rows)
    for name in (
        "encoder.down.0.downsample.conv.weight",
        "encoder.mid.attn_1.q.weight",
        "decoder.up.1.upsample.conv.weight",
    ):
        parameter = dict(tiny.parameters_and_names())[name]
        gradient, before = by_name[name].astype(np.float64), parameter.asnumpy().copy()
        direction = gradient / np.linalg.norm(gradient)
        values = []
        for step in (0.01, -0.01):
            parameter.set_data(Tensor((before + step * direction).astype(np.float32)))
            values.append(float(loss(images, target).asnumpy()))
        parameter.set_data(Tensor(before))
        assert (values[0] - values[1]) / 0.02 == pytest.approx(np.linalg.norm(gradient), rel=0.02), name


def repeated(z: np.ndarray) -> np.ndarray:
    """A decoder that looks at one latent pixel at a time: the first three channels, each pixel 2 x 2 times."""
    return z[:, :3].repeat(2, 2).repeat(2, 3)


@pytest.mark.parametrize(("height", "width"), [(8, 8), (5, 3), (8, 9), (9, 21), (23, 8), (14, 15)])
@pytest.mark.parametrize("overlap", [1, 3, 4])
def test_tiles_of_a_local_decoder_make_the_whole(height: int, width: int, overlap: int) -> None:
    z = np.random.default_rng(3).standard_normal((2, 4, height, width)).astype(np.float32)
    shapes = []

    def decode(part: np.ndarray) -> np.ndarray:
        shapes.append(part.shape[2:])
        return repeated(part)

    found = decode_tiles(decode, z, 2, 8, overlap)
    assert set(shapes) == {(min(height, 8), min(width, 8))}
    if max(height, width) <= 8:
        np.testing.assert_array_equal(found, repeated(z))
    else:
        assert len(shapes) > 1
        np.testing.assert_allclose(found, repeated(z), rtol=0, atol=1e-6)


def test_tiles_of_different_tone_fade_into_each_other() -> None:
    """Tiles 0, 1, 2 ... in tone along one axis: no step is larger than the fade's slope, and the edges are pure."""
    tones = iter(range(99))
    found = decode_tiles(lambda z: np.full_like(repeated(z), next(tones)), np.zeros((1, 4, 4, 20), np.float32), 2, 8, 4)
    row = found[0, 0, 0]
    assert (found == row).all()
    # Tiles are decoded from the right: tones 3, 2, 1, 0 at latent pixels 0, 4, 8, 12, each over the one before.
    assert row[:8].tolist() == [3] * 8
    assert row[-8:].tolist() == [0] * 8
    np.testing.assert_allclose(np.diff(row[8:32]), -1 / 8, atol=1e-6)


@pytest.mark.parametrize(("side", "tile", "overlap"), [(9, 8, 4), (13, 8, 4), (17, 8, 4), (30, 8, 1), (96, 64, 16)])
def test_tile_weights_add_up_to_one_and_overlap_enough(side: int, tile: int, overlap: int) -> None:
    tiles = sorted(tile_weights(side, tile, overlap, 8), key=lambda each: each[0])
    total = np.zeros(8 * side)
    for start, across in tiles:
        assert len(across) == 8 * tile
        total[8 * start : 8 * (start + tile)] += across
    np.testing.assert_allclose(total, 1, atol=1e-6)
    starts = [start for start, _ in tiles]
    assert starts[0] == 0
    assert starts[-1] == side - tile
    assert all(start + tile - following >= overlap for start, following in pairwise(starts))


@pytest.mark.parametrize("overlap", [0, 5])
def test_overlap_leaves_tiles_room(overlap: int) -> None:
    with pytest.raises(ValueError, match=f"overlap {overlap} is not between 1 and half of tile 8"):
        decode_tiles(repeated, np.zeros((1, 4, 9, 9), np.float32), 2, 8, overlap)


def test_latent_space_tiles_only_what_is_larger(tiny: AutoencoderKL) -> None:
    z = np.random.default_rng(4).standard_normal((2, 4, 6, 9)).astype(np.float32)
    whole = LatentSpace(tiny, TINY, tile=9, overlap=2).decode(z)
    np.testing.assert_array_equal(whole, LatentSpace(tiny, TINY, tile=64).decode(z))
    tiled = LatentSpace(tiny, TINY, tile=6, overlap=3).decode(z)
    assert tiled.shape == whole.shape == (2, 3, 12, 18)
    for one, start in ((tiled[..., :6], 0), (tiled[..., 12:], 3)):  # where a single tile shows
        part = LatentSpace(tiny, TINY).decode(z[..., start : start + 6])
        np.testing.assert_array_equal(one, part[..., :6] if start == 0 else part[..., 6:])
