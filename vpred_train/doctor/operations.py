"""Lists the operations of our networks with their truths in float64 numpy.

They are the project's own layers, so that what is tried is what trains.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn

from vpred_train.config.model import UNetConfig
from vpred_train.doctor import truths
from vpred_train.doctor.check import Item
from vpred_train.doctor.comparison import Operation, Rng, compare
from vpred_train.doctor.station import Station
from vpred_train.models.attention import GEGLU, Attention
from vpred_train.models.layers import GELU, Conv2d, Doubled, GroupNorm, LayerNorm, Linear, LowRank
from vpred_train.models.text_encoder import Embedding, SelfAttention
from vpred_train.models.unet import ResBlock, timestep_embedding


class Masked(nn.Cell):
    """Applies attention with the text encoder's mask."""

    def __init__(self, heads: int, head_channels: int, tokens: int) -> None:
        super().__init__()
        self.attend = Attention(heads, head_channels)
        self.mask = Tensor(np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1))

    def construct(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.attend(q, k, v, self.mask)


class Packed(nn.Cell):
    """Applies the text encoder's attention with its mask."""

    def __init__(self, rng: Rng, width: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.attention = SelfAttention(rng, width, heads)
        self.mask = Tensor(np.triu(np.full((tokens, tokens), -np.inf, np.float32), 1))

    def construct(self, x: Tensor) -> Tensor:
        return self.attention(x, self.mask)


class Embedded(nn.Cell):
    """Embeds timesteps as the UNet does, always in float32."""

    def construct(self, timesteps: Tensor) -> Tensor:
        return timestep_embedding(timesteps.astype(mindspore.float32), 64)


class Residual(nn.Cell):
    """Applies a residual block of the UNet to (x, time embedding)."""

    def __init__(self, rng: Rng, channels: int, out_channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.block = ResBlock(rng, channels, out_channels, config)

    def construct(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.block(x, embedding, x, ())


def residual(x: Any, embedding: Any, *weights: Any) -> Any:
    """Compute a residual block of the UNet with 8 groups. weights: in the order of RESIDUAL."""
    norm_1, conv_1, shift, norm_2, conv_2, skip = zip(weights[::2], weights[1::2], strict=True)
    h = truths.convolution(truths.silu(truths.group_norm(x, norm_1[0], norm_1[1], 8, 1e-5)), *conv_1)
    h = h + truths.linear(truths.silu(embedding), *shift)[:, :, None, None]
    h = truths.convolution(truths.silu(truths.group_norm(h, norm_2[0], norm_2[1], 8, 1e-5)), *conv_2)
    return truths.convolution(x, *skip) + h


def packed(x: Any, weight: Any, bias: Any, out_weight: Any, out_bias: Any) -> Any:
    """Compute the text encoder's attention with 4 heads."""
    q, k, v = np.split(truths.linear(x, weight, bias), 3, axis=-1)
    return truths.linear(truths.attention(q, k, v, 4, causal=True), out_weight, out_bias)


BOTH = ("weight", "bias")
PLACES = ("in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3", "skip_connection")
RESIDUAL = tuple(f"block.{place}.{name}" for place in PLACES for name in BOTH)
PACKED = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
NARROW = UNetConfig(model_channels=16, norm_groups=8, head_channels=8, context_channels=16)

_CONVOLUTION = "on ascend set operations.convolution=ops in the cluster file; update CANN"
_PRODUCT = "on ascend set operations.linear=ops in the cluster file; update CANN"
_NORM = "on ascend set operations.layer_norm=ops in the cluster file; update CANN"
_ATTENTION = "on ascend set operations.attention=composed in the cluster file; update CANN"
_ELEMENT = "on ascend set operations.indexing=ops in the cluster file; update CANN or MindSpore"

OPERATIONS: dict[str, Operation] = {
    "convolution 3 x 3": Operation(
        lambda rng: Conv2d(rng, 96, 64, 3), truths.convolution, ((2, 96, 16, 16),), BOTH, _CONVOLUTION
    ),
    "convolution 1 x 1": Operation(
        lambda rng: Conv2d(rng, 96, 64, 1), truths.convolution, ((2, 96, 16, 16),), BOTH, _CONVOLUTION
    ),
    "convolution of stride 2": Operation(
        lambda rng: Conv2d(rng, 64, 64, 3, stride=2),
        partial(truths.convolution, stride=2),
        ((2, 64, 16, 16),),
        BOTH,
        _CONVOLUTION,
    ),
    "convolution padded at the end": Operation(
        lambda rng: Conv2d(rng, 64, 64, 3, stride=2, pad_end=True),
        partial(truths.convolution, stride=2, at_end=True),
        ((2, 64, 16, 16),),
        BOTH,
        _CONVOLUTION,
    ),
    "linear": Operation(lambda rng: Linear(rng, 320, 640), truths.linear, ((2, 77, 320),), BOTH, _PRODUCT),
    "linear without bias": Operation(
        lambda rng: Linear(rng, 320, 320, bias=False), truths.linear, ((2, 77, 320),), ("weight",), _PRODUCT
    ),
    "low-rank product": Operation(
        lambda rng: LowRank(rng, (64, 96), 4, 0.5),
        lambda x, down, up: 0.5 * truths.linear(truths.linear(x, down), up),
        ((77, 96),),
        ("down", "up"),
        _PRODUCT,
    ),
    "group norm": Operation(
        lambda rng: GroupNorm(32, 320, eps=1e-6),
        partial(truths.group_norm, groups=32, eps=1e-6),
        ((2, 320, 16, 16),),
        BOTH,
        _NORM,
    ),
    "group norm and SiLU": Operation(
        lambda rng: GroupNorm(32, 320, silu=True),
        lambda x, weight, bias: truths.silu(truths.group_norm(x, weight, bias, 32, 1e-5)),
        ((2, 320, 16, 16),),
        BOTH,
        _NORM,
    ),
    "layer norm": Operation(lambda rng: LayerNorm(320), truths.layer_norm, ((2, 77, 320),), BOTH, _NORM),
    "SiLU": Operation(lambda rng: nn.SiLU(), truths.silu, ((64, 320),), (), _ELEMENT),
    "GELU": Operation(lambda rng: GELU(), truths.gelu, ((64, 320),), (), _ELEMENT),
    "GEGLU": Operation(
        lambda rng: GEGLU(rng, 64, 256), truths.geglu, ((2, 77, 64),), ("proj.weight", "proj.bias"), _ELEMENT
    ),
    "self-attention": Operation(
        lambda rng: Attention(5, 64), partial(truths.attention, heads=5), ((1, 256, 320),) * 3, (), _ATTENTION
    ),
    "cross-attention": Operation(
        lambda rng: Attention(5, 64),
        partial(truths.attention, heads=5),
        ((2, 64, 320), (2, 77, 320), (2, 77, 320)),
        (),
        _ATTENTION,
    ),
    "attention in turns": Operation(
        lambda rng: Attention(2, 16, max_logits=2 * 64 * 16),
        partial(truths.attention, heads=2),
        ((1, 64, 32),) * 3,
        (),
        _ATTENTION,
    ),
    "attention of one wide head": Operation(
        lambda rng: Attention(1, 512), partial(truths.attention, heads=1), ((1, 64, 512),) * 3, (), _ATTENTION
    ),
    "masked attention": Operation(
        lambda rng: Masked(4, 16, 77),
        partial(truths.attention, heads=4, causal=True),
        ((2, 77, 64),) * 3,
        (),
        _ATTENTION,
    ),
    "text encoder's attention": Operation(
        lambda rng: Packed(rng, 64, 4, 77),
        packed,
        ((2, 77, 64),),
        tuple(f"attention.{name}" for name in PACKED),
        _ATTENTION,
    ),
    "residual block": Operation(
        lambda rng: Residual(rng, 24, 32, NARROW), residual, ((2, 24, 8, 8), (2, 64)), RESIDUAL, _CONVOLUTION
    ),
    "doubling": Operation(lambda rng: Doubled(), truths.doubled, ((2, 64, 8, 8),), (), _ELEMENT),
    "embedding of tokens": Operation(
        lambda rng: Embedding(Tensor(rng.standard_normal((50, 64)).astype(np.float32))),
        lambda numbers, weight: weight[numbers],
        ((2, 77),),
        ("weight",),
        _ELEMENT,
        whole_numbers=50,
    ),
    "embedding of timesteps": Operation(
        lambda rng: Embedded(), partial(truths.timestep_embedding, channels=64), ((16,),), (), _ELEMENT
    ),
}


def items(station: Station) -> Sequence[Item]:
    """List every operation in every dtype in which the accelerator computes."""
    return [
        Item(f"{name}, {dtype}", partial(compare, operation, dtype), operation.remedy)
        for dtype in station.accelerator.compute_dtypes
        for name, operation in OPERATIONS.items()
    ]
