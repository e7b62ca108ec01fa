"""Implements the UNet of Stable Diffusion 2.x (Rombach et al. 2022, arXiv 2112.10752) in any width and depth.

Module names are those of Stability's checkpoints below `model.diffusion_model.`.
"""

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from launcher.contract.accelerators import ComputeDtype
from vpred_train.config.model import UNetConfig
from vpred_train.kernels import implementations
from vpred_train.models import indexing
from vpred_train.models.attention import SpatialTransformer
from vpred_train.models.layers import COMPUTE_DTYPES, Conv2d, Doubled, GroupNorm, Linear, orthogonal

Size = tuple[int, ...]


def timestep_embedding(timesteps: Tensor, channels: int) -> Tensor:
    """Embed timesteps (B,) as sinusoids (B, channels) float32, cosines first (Vaswani et al. 2017, section 3.5)."""
    half = channels // 2
    frequencies = np.exp(-math.log(10000) * np.arange(half) / half).astype(np.float32)
    angles = timesteps.reshape(-1, 1) * Tensor(frequencies).reshape(1, -1)
    return ops.concat((ops.cos(angles), ops.sin(angles)), -1)


class ResBlock(nn.Cell):
    """Applies two convolutions with the time embedding added between them, and a residual."""

    def __init__(self, rng: np.random.Generator, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        groups = config.norm_groups
        self.in_layers = nn.SequentialCell(
            GroupNorm(groups, channels, silu=True), nn.Identity(), Conv2d(rng, channels, out_channels, 3)
        )
        self.emb_layers = nn.SequentialCell(nn.SiLU(), Linear(rng, 4 * config.model_channels, out_channels))
        self.out_layers = nn.SequentialCell(
            GroupNorm(groups, out_channels, silu=True),
            nn.Identity(),
            nn.Identity(),
            Conv2d(rng, out_channels, out_channels, 3),
        )
        self.shift = ops.BiasAdd()  # on CPU faster than a broadcasting +
        self.shift_by_add = implementations.chosen().convolution == "mint"
        # After a concatenation, start with the sum of its two parts, so that a fresh network passes both on.
        identity = np.eye(out_channels, channels) + np.eye(out_channels, channels, channels - out_channels)
        matrix = identity / math.sqrt(2) if channels > out_channels else None
        self.skip_connection = (
            nn.Identity() if channels == out_channels else Conv2d(rng, channels, out_channels, 1, matrix=matrix)
        )

    def construct(self, x: Tensor, embedding: Tensor, context: Tensor, size: Size) -> Tensor:
        h = self.in_layers(x)
        batch, channels, height, width = h.shape
        if self.shift_by_add:
            h = h + self.emb_layers(embedding).reshape(batch, channels, 1, 1)
            return self.skip_connection(x) + self.out_layers(h)
        rows = h.reshape(1, batch * channels, height, width)  # each sample has its own shift
        h = self.shift(rows, self.emb_layers(embedding).reshape(batch * channels)).reshape(h.shape)
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Cell):
    """Halves height and width by a convolution of stride 2."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.op = Conv2d(rng, channels, channels, 3, stride=2)

    def construct(self, x: Tensor, embedding: Tensor, context: Tensor, size: Size) -> Tensor:
        return self.op(x)


class Upsample(nn.Cell):
    """Doubles height and width by repetition, crops to `size`, then convolves."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.double = Doubled()
        self.crop = indexing.chosen().crop
        self.conv = Conv2d(rng, channels, channels, 3)

    def construct(self, x: Tensor, embedding: Tensor, context: Tensor, size: Size) -> Tensor:
        x = self.double(x)
        if x.shape[2:] != size:  # halving rounded an odd side up
            x = self.crop(x, size[0], size[1])
        return self.conv(x)


class InputConvolution(Conv2d):
    """Forms the first block; it takes the arguments of every block."""

    def construct(  # type: ignore[override]
        self, x: Tensor, embedding: Tensor, context: Tensor, size: Size
    ) -> Tensor:
        return super().construct(x)


class Block(nn.SequentialCell):
    """Calls layers in sequence with (x, embedding, context, size).

    size: height and width of the output.
    """

    def construct(self, x: Tensor, embedding: Tensor, context: Tensor, size: Size) -> Tensor:
        for layer in self.cell_list:
            x = layer(x, embedding, context, size)
        return x


class UNet(nn.Cell):
    """Predicts (B, C, H, W) float32 from z_t (B, C, H, W) float32; the layers between compute in `compute_dtype`.

    timesteps: (B,) float32.
    context: (B, tokens, context_channels) float32.

    A fresh network passes z_t through: its first kernel is delta-orthogonal (Xiao et al. 2018, arXiv 1806.05393), and
    its last kernel is the transpose of it. At low noise v is the noise in z_t, which a random start finds only slowly.
    """

    def __init__(self, config: UNetConfig, rng: np.random.Generator, compute_dtype: ComputeDtype = "float32") -> None:
        super().__init__()
        width = config.model_channels
        through = orthogonal(rng, width, config.in_channels)
        self.width, self.dtype = width, COMPUTE_DTYPES[compute_dtype]
        self.time_embed = nn.SequentialCell(Linear(rng, width, 4 * width), nn.SiLU(), Linear(rng, 4 * width, 4 * width))

        def transformer(channels: int) -> SpatialTransformer:
            return SpatialTransformer(rng, channels, config.context_channels, config.head_channels, config.norm_groups)

        levels = len(config.channel_multipliers)
        inputs = [Block(InputConvolution(rng, config.in_channels, width, 3, matrix=through))]
        skips = [width]
        channels = width
        for level, multiplier in enumerate(config.channel_multipliers):
            for _ in range(config.res_blocks):
                layers: list[nn.Cell] = [ResBlock(rng, channels, multiplier * width, config)]
                channels = multiplier * width
                if level in config.attention_levels:
                    layers.append(transformer(channels))
                inputs.append(Block(*layers))
                skips.append(channels)
            if level < levels - 1:
                inputs.append(Block(Downsample(rng, channels)))
                skips.append(channels)
        self.input_blocks = nn.CellList(inputs)
        self.middle_block = Block(
            ResBlock(rng, channels, channels, config),
            transformer(channels),
            ResBlock(rng, channels, channels, config),
        )
        outputs = []
        for level, multiplier in reversed(list(enumerate(config.channel_multipliers))):
            for index in range(config.res_blocks + 1):
                layers = [ResBlock(rng, channels + skips.pop(), multiplier * width, config)]
                channels = multiplier * width
                if level in config.attention_levels:
                    layers.append(transformer(channels))
                if level > 0 and index == config.res_blocks:
                    layers.append(Upsample(rng, channels))
                outputs.append(Block(*layers))
        self.output_blocks = nn.CellList(outputs)
        self.out = nn.SequentialCell(
            GroupNorm(config.norm_groups, channels, silu=True),
            nn.Identity(),
            Conv2d(rng, channels, config.in_channels, 3, matrix=through.T),
        )

    def construct(self, z: Tensor, timesteps: Tensor, context: Tensor) -> Tensor:
        embedding = self.time_embed(timestep_embedding(timesteps, self.width).astype(self.dtype))
        context = context.astype(self.dtype)
        skips = ()
        h = z.astype(self.dtype)
        for block in self.input_blocks:
            h = block(h, embedding, context, ())
            skips += (h,)  # type: ignore[assignment]  # an annotation would not pass the graph parser
        h = self.middle_block(h, embedding, context, ())
        for index, block in enumerate(self.output_blocks):
            following = skips[max(0, len(skips) - 2 - index)]  # type: ignore[var-annotated]
            h = block(ops.concat((h, skips[-1 - index]), 1), embedding, context, following.shape[2:])
        return self.out(h).astype(mstype.float32)
