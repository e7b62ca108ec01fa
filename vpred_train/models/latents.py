"""Converts images to the latents that the UNet sees, and back, on the host (numpy in, numpy out).

Images are (B, 3, H, W) float32 in [-1, 1]; latents are float32.
"""

import math
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from mindspore import Tensor, nn

from vpred_train.arrays import FloatArray
from vpred_train.config.model import ModelConfig, VaeConfig
from vpred_train.host_copies import to_host
from vpred_train.models.autoencoder_kl import AutoencoderKL


class Latents(Protocol):
    """Declares what trainer and sampler need: the latents of images, and the images of latents."""

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray: ...

    def decode(self, latents: FloatArray) -> FloatArray: ...


def make_latents(config: ModelConfig, autoencoder: AutoencoderKL | None) -> Latents:
    """Return the latents of a model: those of its autoencoder, or folded pixels when it has none."""
    if config.vae is None or autoencoder is None:
        return SpaceToDepth(config.space_to_depth)
    return LatentSpace(autoencoder, config.vae)


class SpaceToDepth:
    """Folds each f x f patch of pixels into the channels of one latent pixel: (B, 3 f^2, H / f, W / f).

    It has no weights and loses nothing. Factor 1 is the identity.
    """

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray:
        """Convert images to latents. The generators stay unused, because nothing is drawn."""
        batch, channels, height, width = images.shape
        f = self.factor
        patches = images.reshape(batch, channels, height // f, f, width // f, f).transpose(0, 1, 3, 5, 2, 4)
        return np.ascontiguousarray(patches.reshape(batch, channels * f * f, height // f, width // f))

    def decode(self, latents: FloatArray) -> FloatArray:
        """Convert latents to images."""
        batch, channels, height, width = latents.shape
        f = self.factor
        patches = latents.reshape(batch, channels // (f * f), f, f, height, width).transpose(0, 1, 4, 2, 5, 3)
        return np.ascontiguousarray(patches.reshape(batch, channels // (f * f), height * f, width * f))


class _Posterior(nn.Cell):
    """Runs the encoder half as a separate graph."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def construct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return self.autoencoder.posterior(self.autoencoder.encode(images))


class _Decoded(nn.Cell):
    """Runs the decoder half as a separate graph."""

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder

    def construct(self, latents: Tensor) -> Tensor:
        return self.autoencoder.decode(latents)


class LatentSpace:
    """Converts images to latents of about unit variance, `config.scale` times the autoencoder's, and back.

    Latents of more than `tile` pixels on a side are decoded in overlapping tiles (see `decode_tiles`). Each new shape
    is compiled once.
    tile, overlap: in latent pixels.
    """

    def __init__(self, autoencoder: AutoencoderKL, config: VaeConfig, tile: int = 96, overlap: int = 16) -> None:
        self.autoencoder, self.config, self.tile, self.overlap = autoencoder, config, tile, overlap
        self.posterior_graph = _Posterior(autoencoder)
        self.decode_graph = _Decoded(autoencoder)

    def shape_of(self, images: FloatArray) -> tuple[int, int, int]:
        """Return the shape of each image's latents, (latent_channels, H / f, W / f).

        Raises ValueError: when f = `config.downsampling` does not divide H and W.
        """
        factor, (height, width) = self.config.downsampling, images.shape[2:]
        if height % factor or width % factor:
            raise ValueError(f"images of {height} x {width} pixels: the sides must be multiples of {factor}")
        return self.config.latent_channels, height // factor, width // factor

    def posterior(self, images: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and log-variance of the autoencoder's latents, each (B, latent_channels, H / f, W / f) float32.

        images: (B, 3, H, W) float32 in [-1, 1].
        Raises ValueError: as `shape_of`.
        """
        self.shape_of(images)
        mean, log_variance = self.posterior_graph(Tensor(images))
        return to_host(mean), to_host(log_variance)

    def encode(self, images: FloatArray, generators: Sequence[np.random.Generator] = ()) -> FloatArray:
        """Return latents (B, latent_channels, H / f, W / f) float32.

        generators: one for each image, to draw from its posterior; without generators the mode is returned.
        """
        return drawn_latents(*self.posterior(images), generators, self.config)

    def decode(self, latents: FloatArray) -> FloatArray:
        """Decode (B, latent_channels, h, w) float32 to images (B, 3, f h, f w) float32, not clipped.

        Images are decoded one at a time, to save memory.
        """
        z = latents / np.float32(self.config.scale)
        images = [
            decode_tiles(self._decode, z[index : index + 1], self.config.downsampling, self.tile, self.overlap)
            for index in range(len(z))
        ]
        return np.concatenate(images)

    def _decode(self, z: FloatArray) -> FloatArray:
        return to_host(self.decode_graph(Tensor(z)))


def drawn_latents(
    mean: FloatArray, log_variance: FloatArray, generators: Sequence[np.random.Generator], config: VaeConfig
) -> FloatArray:
    """Return the latents that the UNet sees, from posteriors (B, C, h, w).

    generators: one for each posterior, to draw from it; without generators the mode is returned.
    """
    z = mean
    if generators:
        noise = np.stack([generator.standard_normal(z.shape[1:], np.float32) for generator in generators])
        z = z + np.exp(0.5 * log_variance) * noise
    return z * np.float32(config.scale)


def decode_tiles(
    decode: Callable[[FloatArray], FloatArray], z: FloatArray, factor: int, tile: int, overlap: int
) -> FloatArray:
    """Apply `decode` to tiles of at most `tile` latent pixels on a side, and blend the tiles into full images.

    Neighbours overlap by at least `overlap` latent pixels, over which one fades linearly into the next. Without a
    neighbour nothing fades: the result for a single tile is that of `decode` alone. Norms and attention see only one
    tile, so tiles may differ a little in tone.
    decode: (B, C, h, w) -> (B, 3, factor h, factor w).
    Raises ValueError: when the overlap is below 1 or above half of the tile.
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
    """Return, along one axis, the first latent pixel of each tile and the weights of its image pixels, float32.

    Tiles have equal lengths (one shape to compile) and are evenly spread. At each image pixel the weights sum to one.
    side, tile, overlap: in latent pixels.
    factor: image pixels for each latent pixel.
    """
    length = min(tile, side)
    count = max(1, math.ceil((side - overlap) / (tile - overlap)))
    starts = [(side - length) * index // max(count - 1, 1) for index in range(count)]
    pixels = np.arange(factor * side) + 0.5
    tiles: list[tuple[int, FloatArray]] = []
    uncovered = np.ones(factor * side)
    for start in reversed(starts):  # each tile covers those before it and fades in at its start
        rise = np.clip((pixels - factor * start) / (factor * overlap), 0, 1) if start else np.ones(factor * side)
        weights = (rise * uncovered)[factor * start : factor * (start + length)]
        tiles.append((start, weights.astype(np.float32)))
        uncovered = uncovered * (1 - rise)
    return tiles
