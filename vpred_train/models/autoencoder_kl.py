"""Implements the autoencoder of Stable Diffusion (Rombach et al. 2022, arXiv 2112.10752, section 3.1).

Its latents are KL-regularised (Kingma & Welling 2014, arXiv 1312.6114).
Module names are those of Stability's checkpoints below `first_stage_model.`.
"""

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from launcher.contract.accelerators import ComputeDtype
from vpred_train.config.model import VaeConfig
from vpred_train.models import indexing
from vpred_train.models.attention import Attention
from vpred_train.models.layers import COMPUTE_DTYPES, Conv2d, Doubled, GroupNorm

EPS = 1e-6  # every GroupNorm here uses it
LOG_VARIANCE_RANGE = (-30.0, 20.0)


class ResBlock(nn.Cell):
    """Applies two convolutions and a residual: (B, channels, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, rng: np.random.Generator, channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = GroupNorm(groups, channels, EPS, silu=True)
        self.conv1 = Conv2d(rng, channels, out_channels, 3)
        self.norm2 = GroupNorm(groups, out_channels, EPS, silu=True)
        self.conv2 = Conv2d(rng, out_channels, out_channels, 3)
        self.nin_shortcut = nn.Identity() if channels == out_channels else Conv2d(rng, channels, out_channels, 1)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.nin_shortcut(x) + h


class PixelAttention(nn.Cell):
    """Computes self-attention over the pixels of (B, C, H, W) with one head of C channels, and adds a residual."""

    def __init__(self, rng: np.random.Generator, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = GroupNorm(groups, channels, EPS)
        self.q = Conv2d(rng, channels, channels, 1)
        self.k = Conv2d(rng, channels, channels, 1)
        self.v = Conv2d(rng, channels, channels, 1)
        self.proj_out = Conv2d(rng, channels, channels, 1)
        self.attend = Attention(1, channels)

    def tokens(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        return x.reshape(batch, channels, height * width).transpose(0, 2, 1)

    def construct(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        y = self.attend(self.tokens(self.q(h)), self.tokens(self.k(h)), self.tokens(self.v(h)))
        return x + self.proj_out(y.transpose(0, 2, 1).reshape(x.shape))


class Middle(nn.Cell):
    """Forms the deepest layers of encoder and decoder, the only ones with attention."""

    def __init__(self, rng: np.random.Generator, channels: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResBlock(rng, channels, channels, groups)
        self.attn_1 = PixelAttention(rng, channels, groups)
        self.block_2 = ResBlock(rng, channels, channels, groups)

    def construct(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


def res_blocks(
    count: int, rng: np.random.Generator, channels: int, out_channels: int, groups: int
) -> nn.SequentialCell:
    """Return `count` ResBlocks in sequence; the first changes the width."""
    widths = [channels] + [out_channels] * (count - 1)
    return nn.SequentialCell(*[ResBlock(rng, width, out_channels, groups) for width in widths])


class Downsample(nn.Cell):
    """Halves height and width by a convolution of stride 2 that is padded only below and on the right."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(rng, channels, channels, 3, stride=2, pad_end=True)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Upsample(nn.Cell):
    """Doubles height and width by repetition, then convolves."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.double = Doubled()
        self.conv = Conv2d(rng, channels, channels, 3)

    def construct(self, x: Tensor) -> Tensor:
        return self.conv(self.double(x))


class EncoderLevel(nn.Cell):
    """Forms one resolution on the way down; it ends by halving the resolution, except at the deepest level."""

    def __init__(self, block: nn.SequentialCell, downsample: nn.Cell) -> None:
        super().__init__()
        self.block = block
        self.downsample = downsample

    def construct(self, x: Tensor) -> Tensor:
        return self.downsample(self.block(x))


class DecoderLevel(nn.Cell):
    """Forms one resolution on the way up; it ends by doubling the resolution, except at the last level."""

    def __init__(self, block: nn.SequentialCell, upsample: nn.Cell) -> None:
        super().__init__()
        self.block = block
        self.upsample = upsample

    def construct(self, x: Tensor) -> Tensor:
        return self.upsample(self.block(x))


class Encoder(nn.Cell):
    """Encodes images (B, 3, H, W) to (B, 2 * latent_channels, H / 8, W / 8) at four levels.

    `down.0` is the finest level.
    """

    def __init__(self, config: VaeConfig, rng: np.random.Generator) -> None:
        super().__init__()
        groups, deepest = config.norm_groups, len(config.channel_multipliers) - 1
        self.conv_in = Conv2d(rng, 3, config.channels, 3)
        levels = []
        channels = config.channels
        for level, multiplier in enumerate(config.channel_multipliers):
            width = multiplier * config.channels
            block = res_blocks(config.res_blocks, rng, channels, width, groups)
            downsample = nn.Identity() if level == deepest else Downsample(rng, width)
            levels.append(EncoderLevel(block, downsample))
            channels = width
        self.down = nn.CellList(levels)
        self.mid = Middle(rng, channels, groups)
        self.norm_out = GroupNorm(groups, channels, EPS, silu=True)
        self.conv_out = Conv2d(rng, channels, 2 * config.latent_channels, 3)

    def construct(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        return self.conv_out(self.norm_out(self.mid(h)))


class Decoder(nn.Cell):
    """Decodes (B, latent_channels, H, W) to images (B, 3, 8 H, 8 W) at four levels.

    `up.0` is the finest level, and the last.
    """

    def __init__(self, config: VaeConfig, rng: np.random.Generator) -> None:
        super().__init__()
        groups = config.norm_groups
        channels = config.channel_multipliers[-1] * config.channels
        self.conv_in = Conv2d(rng, config.latent_channels, channels, 3)
        self.mid = Middle(rng, channels, groups)
        levels: list[nn.Cell] = []
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            width = multiplier * config.channels
            block = res_blocks(config.res_blocks + 1, rng, channels, width, groups)
            upsample = Upsample(rng, width) if level else nn.Identity()
            levels.insert(0, DecoderLevel(block, upsample))
            channels = width
        self.up = nn.CellList(levels)
        self.norm_out = GroupNorm(groups, channels, EPS, silu=True)
        self.conv_out = Conv2d(rng, channels, 3, 3)

    def construct(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in range(len(self.up) - 1, -1, -1):
            h = self.up[level](h)
        return self.conv_out(self.norm_out(h))


class AutoencoderKL(nn.Cell):
    """Encodes images in [-1, 1] to the moments of a diagonal Gaussian over latents, and decodes latents to images.

    Inputs and outputs are float32; the layers between compute in `compute_dtype`.
    The latents are those of the network, not yet multiplied by `config.scale`: `models.latents` does that.
    """

    def __init__(self, config: VaeConfig, rng: np.random.Generator, compute_dtype: ComputeDtype = "float32") -> None:
        super().__init__()
        self.dtype = COMPUTE_DTYPES[compute_dtype]
        latent = config.latent_channels
        self.encoder = Encoder(config, rng)
        self.decoder = Decoder(config, rng)
        self.quant_conv = Conv2d(rng, 2 * latent, 2 * latent, 1)
        self.post_quant_conv = Conv2d(rng, latent, latent, 1)
        self.chunk = indexing.chosen().chunk

    def encode(self, images: Tensor) -> Tensor:
        """Encode (B, 3, H, W) to moments (B, 2 * latent_channels, H / f, W / f) float32, f = `config.downsampling`."""
        return self.quant_conv(self.encoder(images.astype(self.dtype))).astype(mstype.float32)

    def posterior(self, moments: Tensor) -> tuple[Tensor, Tensor]:
        """Split moments into mean and log-variance, each (B, latent_channels, h, w).

        The log-variance is clipped to [-30, 20].
        """
        mean, log_variance = self.chunk(moments, 2, 1)
        return mean, ops.clip_by_value(log_variance, *LOG_VARIANCE_RANGE)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode (B, latent_channels, h, w) to images (B, 3, f h, f w) float32, not clipped."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype))).astype(mstype.float32)
