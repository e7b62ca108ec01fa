"""Implements OpenCLIP's text tower (Radford et al. 2021, arXiv 2103.00020) under Stability's names."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype

from launcher.contract.accelerators import ComputeDtype
from vpred_train.config.model import TextEncoderConfig
from vpred_train.models import indexing
from vpred_train.models.attention import Attention
from vpred_train.models.layers import COMPUTE_DTYPES, GELU, LayerNorm, Linear, LowRank, QuickGELU, uniform

Activation = Literal["gelu", "quick_gelu"]
ACTIVATIONS: dict[Activation, Callable[[], nn.Cell]] = {"gelu": GELU, "quick_gelu": QuickGELU}


class SelfAttention(nn.Cell):
    """Computes self-attention with one packed projection.

    in_proj_weight: (3 width, width) float32.
    in_proj_bias: (3 width,) float32.
    in_proj_lora: when set, adds its low-rank product to the projection.
    """

    def __init__(self, rng: np.random.Generator, width: int, heads: int) -> None:
        super().__init__()
        self.in_proj_weight = Parameter(uniform(rng, (3 * width, width), width), name="in_proj_weight")
        self.in_proj_bias = Parameter(Tensor(np.zeros(3 * width, np.float32)), name="in_proj_bias")
        self.out_proj = Linear(rng, width, width)
        self.product = ops.MatMul(transpose_b=True)
        self.in_proj_lora: LowRank | None = None
        self.attend = Attention(heads, width // heads)
        self.chunk = indexing.chosen().chunk

    def construct(self, x: Tensor, mask: Tensor | None) -> Tensor:
        batch, tokens, width = x.shape
        x = x.reshape(-1, width)
        packed = self.product(x, self.in_proj_weight.astype(x.dtype)) + self.in_proj_bias.astype(x.dtype)
        if self.in_proj_lora is not None:
            packed = packed + self.in_proj_lora(x)
        q, k, v = self.chunk(packed.reshape(batch, tokens, 3 * width), 3, -1)
        return self.out_proj(self.attend(q, k, v, mask))


class MLP(nn.Cell):
    """Applies two linear layers with an activation between them."""

    def __init__(self, rng: np.random.Generator, width: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = Linear(rng, width, inner)
        self.gelu = ACTIVATIONS[activation]()
        self.c_proj = Linear(rng, inner, width)

    def construct(self, x: Tensor) -> Tensor:
        return self.c_proj(self.gelu(self.c_fc(x)))


class ResidualAttentionBlock(nn.Cell):
    """Applies attention and MLP, each with pre-norm and a residual."""

    def __init__(self, rng: np.random.Generator, width: int, heads: int, inner: int, activation: Activation) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = SelfAttention(rng, width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = MLP(rng, width, inner, activation)

    def construct(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Cell):
    """Applies a stack of residual attention blocks.

    inner: width between the two layers of an MLP; None means 4 x `width`.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        width: int,
        layers: int,
        heads: int,
        inner: int | None = None,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        self.resblocks = nn.CellList(
            [ResidualAttentionBlock(rng, width, heads, inner or 4 * width, activation) for _ in range(layers)]
        )

    def construct(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class Embedding(nn.Cell):
    """Looks up rows of a table by number; weight is (rows, width) float32."""

    def __init__(self, table: Tensor) -> None:
        super().__init__()
        self.weight = Parameter(table, name="weight")
        self.rows = indexing.chosen().rows

    def construct(self, numbers: Tensor) -> Tensor:
        return self.rows(numbers, self.weight)


class TextEncoder(nn.Cell):
    """Maps token numbers (B, context_length) int32 to features (B, context_length, width) float32 after `ln_final`.

    The blocks compute in `compute_dtype`. SD2's have exact GELU, and an MLP of 4 x the width.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        rng: np.random.Generator,
        compute_dtype: ComputeDtype = "float32",
        inner: int | None = None,
        activation: Activation = "gelu",
    ) -> None:
        super().__init__()
        width, length = config.width, config.context_length
        # Wider than CLIP's 0.02: a fresh text encoder must distinguish words from the first step.
        table = rng.normal(0, 0.5, (config.vocabulary_size, width)).astype(np.float32)
        self.token_embedding = Embedding(Tensor(table))
        positions = rng.normal(0, 0.1, (length, width)).astype(np.float32)
        self.positional_embedding = Parameter(Tensor(positions), name="positional_embedding")
        self.transformer = Transformer(rng, width, config.layers, config.heads, inner, activation)
        self.ln_final = LayerNorm(width)
        self.dtype = COMPUTE_DTYPES[compute_dtype]
        self.mask = Tensor(np.triu(np.full((length, length), -np.inf, np.float32), 1))

    def construct(self, tokens: Tensor) -> Tensor:
        x = self.token_embedding(tokens) + self.positional_embedding
        return self.ln_final(self.transformer(x.astype(self.dtype), self.mask).astype(mstype.float32))
