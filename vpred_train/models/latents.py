"""Images to what the UNet sees of them and back, on the host (numpy in, numpy out).

Images are (B, 3, H, W) float32 in [-1, 1]; latents are float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from mindspore import Tensor, nn

from vpred_train.arrays import FloatArray
from vpred_train.config.model import ModelConfig, VaeConfig
from vpred_train.models.autoencoder_kl import AutoencoderKL


class Latents(Protocol):
    """What trainer and sampler need: the latents of images, and the images of latents."""

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray: ...

    def decode(self, latents: FloatArray) -> FloatArray: ...


def make_latents(config: ModelConfig, autoencoder: AutoencoderKL | None) -> Latents:
    """The latents of a model: those of its autoencoder, or without one folded pixels."""
    if config.vae is None or autoencoder is None:
        return SpaceToDepth(config.space_to_depth)
    return LatentSpace(autoencoder, config.vae)


class SpaceToDepth:
    """Each f x f patch of pixels becomes the channels of one latent pixel, (B, 3 f^2, H/f, W/f): nothing to learn,
    nothing lost. Factor 1 is the identity."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray:
        """Images to latents; there is nothing to draw, so the generators are left alone."""
        batch, channels, height, width = images.shape
        f = self.factor
        patches = images.reshape(batch, channels, height // f, f, width // f, f).transpose(0, 1, 3, 5, 2, 4)
        return np.ascontiguousarray(patches.reshape(batch, channels * f * f, height // f, width // f))

    def decode(self, latents: FloatArray) -> FloatArray:
        """Latents to images."""
        batch, channels, height, width = latents.shape
        f = self.factor
        patches = latents.reshape(batch, channels // (f * f), f, f, height, width).transpose(0, 1, 4, 2, 5, 3)
        return np.ascontiguousarray(patches.reshape(batch, channels // (f * f), height * f, width * f))


class _Posterior(nn.Cell):
    """The encoder's half as a graph of its own."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.autoencoder.posterior(self.autoencoder.encode(images))


class _Decoded(nn.Cell):
    """The decoder's half as a graph of its own."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def construct(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)


class LatentSpace:
    """What the UNet sees of images: latents of about unit variance, `config.scale` times the autoencoder's.

    Latents of more than `tile` pixels on a side are decoded in overlapping tiles, see `decode_tiles`. Each new shape is
    compiled once.
    """

    def __init__(self, autoencoder: AutoencoderKL, config: VaeConfig, tile: int = 96, overlap: int = 16) -> None:
        self.config, self.tile, self.overlap = config, tile, overlap
        self.posterior_graph = _Posterior(autoencoder)
        self.decode_graph = _Decoded(autoencoder)

    def posterior(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Images (B, 3, H, W) float32 in [-1, 1] -> mean and log-variance of the autoencoder's latents, each
        (B, latent_channels, H / f, W / f). Raises ValueError unless f = `config.downsampling` divides H and W."""
        factor, (height, width) = self.config.downsampling, images.shape[2:]
        if height % factor or width % factor:
            raise ValueError(f"images of {height} x {width} pixels: the sides must be multiples of {factor}")
        mean, log_variance = self.posterior_graph(Tensor(images))
        return mean.asnumpy(), log_variance.asnumpy()

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray:
        """Latents (B, latent_channels, H / f, W / f): a draw from each image's posterior by its own generator, or
        without generators the mode."""
        return drawn_latents(*self.posterior(images), generators, self.config)

    def decode(self, latents: FloatArray) -> FloatArray:
        """(B, latent_channels, h, w) float32 -> images (B, 3, f h, f w), not clipped; one at a time, to save memory."""
        z = latents / np.float32(self.config.scale)
        images = [
            decode_tiles(self._decode, z[index : index + 1], self.config.downsampling, self.tile, self.overlap)
            for index in range(len(z))
        ]
        return np.concatenate(images)

    def _decode(self, z: FloatArray) -> FloatArray:
        return self.decode_graph(Tensor(z)).asnumpy()


def drawn_latents(
    mean: FloatArray, log_variance: FloatArray, generators: Sequence[np.random.Generator], config: VaeConfig
) -> FloatArray:
    """What the UNet sees of posteriors (B, C, h, w): a draw from each by its own generator, or without generators the
    mode."""
    z = mean
    if generators:
        noise = np.stack([generator.standard_normal(z.shape[1:], np.float32) for generator in generators])
        z = z + np.exp(0.5 * log_variance) * noise
    return z * np.float32(config.scale)


def decode_tiles(
    decode: Callable[[FloatArray], FloatArray], z: FloatArray, factor: int, tile: int, overlap: int
) -> FloatArray:
    """`decode` (B, C, h, w) -> (B, 3, factor h, factor w), applied to tiles of at most `tile` latent pixels on a side.

    Neighbours overlap by at least `overlap` latent pixels, over which one fades linearly into the next. Without a
    neighbour nothing fades: what fits one tile comes out as `decode` alone gives it. Norms and attention see one tile
    only, so that tiles may differ a little in tone. Raises ValueError for an overlap that leaves tiles no room.
    """
    if not 1 <= overlap <= tile // 2:
        raise ValueError(f"overlap {overlap} is not between 1 and half of tile {tile}")
    batch, _, height, width = z.shape
    rows, columns = (tile_weights(side, tile, overlap, factor) for side in (height, width))
    images = np.zeros((batch, 3, factor * height, factor * width), np.float32)
    for top, down in rows:
        for left, across in columns:
            part = decode(np.ascontiguousarray(z[:, :, top : top + tile, left : left + tile]))
            y, x = factor * top, factor * left
            images[:, :, y : y + len(down), x : x + len(across)] += part * down[:, None] * across
    return images


def tile_weights(side: int, tile: int, overlap: int, factor: int) -> list[tuple[int, FloatArray]]:
    """Along one axis: the first latent pixel of each tile, and the weight of each of its image pixels, float32.

    Tiles are equally long (one shape to compile) and evenly spread. At each image pixel the weights add up to one.
    """
    length = min(tile, side)
    count = max(1, math.ceil((side - overlap) / (tile - overlap)))
    starts = [(side - length) * index // max(count - 1, 1) for index in range(count)]
    pixels = np.arange(factor * side) + 0.5
    tiles: list[tuple[int, FloatArray]] = []
    uncovered = np.ones(factor * side)
    for start in reversed(starts):  # each tile lies over those before it and fades in where it begins
        rise = np.clip((pixels - factor * start) / (factor * overlap), 0, 1) if start else np.ones(factor * side)
        weights = (rise * uncovered)[factor * start : factor * (start + length)]
        tiles.append((start, weights.astype(np.float32)))
        uncovered = uncovered * (1 - rise)
    return tiles
