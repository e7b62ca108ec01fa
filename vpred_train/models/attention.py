"""Implements attention and the spatial transformer of Stable Diffusion 2.x."""

import math

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from vpred_train.kernels import implementations, library, operations
from vpred_train.models import indexing
from vpred_train.models.layers import GELU, GroupNorm, LayerNorm, Linear

# MindSpore documents flash_attention_score for heads of 16, 32, ... 512 channels. The limit itself, which only the
# autoencoder would reach, is avoided.
FLASH_HEAD_CHANNELS = range(16, 257, 16)


class Attention(nn.Cell):
    """Computes softmax(q k^T / sqrt(d)) v for each head (Vaswani et al. 2017, eq. 1), with the softmax in float32.

    q: (B, N, heads * head_channels), the shape of the result too.
    k, v: (B, M, heads * head_channels).
    mask: (N, M), 0 or -inf, added to the logits.
    max_logits: the most logits that exist at a time without a mask; further queries are processed in turn.
    """

    def __init__(self, heads: int, head_channels: int, max_logits: int = 1 << 26) -> None:
        super().__init__()
        self.heads = heads
        self.scale = 1 / math.sqrt(head_channels)
        self.max_logits = max_logits
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.attention(heads)
        self.flash = implementations.chosen().attention == "flash" and head_channels in FLASH_HEAD_CHANNELS
        self.logits = ops.BatchMatMul(transpose_b=True)
        self.mix = ops.BatchMatMul()
        self.wait = ops.Depend()
        self.cut = indexing.chosen().split

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # The query is scaled first, because SD2's raw logits exceed the range of float16.
        logits = self.logits(q * self.scale, k).astype(mstype.float32)
        if mask is not None:
            logits = logits + mask
        return self.mix(ops.softmax(logits, -1).astype(v.dtype), v)

    def split(self, x: Tensor) -> Tensor:
        batch, tokens, inner = x.shape
        return x.reshape(batch, tokens, self.heads, inner // self.heads).transpose(0, 2, 1, 3)

    def construct(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        if self.use_compiled and mask is None and q.dtype == mstype.float32:
            return self.operation(q, k, v)[0]
        if self.flash and mask is None and q.dtype != mstype.float32:
            return ops.flash_attention_score(q, k, v, self.heads, scalar_value=self.scale, input_layout="BSH")
        y = self.in_turn(self.split(q), self.split(k), self.split(v), mask)
        return y.transpose(0, 2, 1, 3).reshape(q.shape)

    def in_turn(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Attend in parts of the queries. Inputs and result are (B, heads, tokens, head_channels)."""
        batch, heads, tokens, _ = q.shape
        queries = max(1, self.max_logits // (batch * heads * k.shape[2]))
        if mask is not None or tokens <= queries:
            return self.attend(q, k, v, mask)
        parts = ()
        done = q
        for part in self.cut(q, queries, 2):
            # Each part waits for the one before, because the graph's executor would start all of them at once.
            done = self.attend(self.wait(part, done), k, v, None)
            parts += (done,)  # type: ignore[assignment]
        return ops.concat(parts, 2)


class CrossAttention(nn.Cell):
    """Computes multi-head attention of x (B, N, C) to context (B, M, D); with x as context it is self-attention."""

    def __init__(
        self, rng: np.random.Generator, channels: int, context_channels: int, heads: int, head_channels: int
    ) -> None:
        super().__init__()
        inner = heads * head_channels
        self.to_q = Linear(rng, channels, inner, bias=False)
        self.to_k = Linear(rng, context_channels, inner, bias=False)
        self.to_v = Linear(rng, context_channels, inner, bias=False)
        self.to_out = nn.SequentialCell(Linear(rng, inner, channels))
        self.attend = Attention(heads, head_channels)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        return self.to_out(self.attend(self.to_q(x), self.to_k(context), self.to_v(context)))


class GEGLU(nn.Cell):
    """Implements the gated linear unit with GELU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, rng: np.random.Generator, channels: int, inner: int) -> None:
        super().__init__()
        self.proj = Linear(rng, channels, 2 * inner)
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.geglu()
        self.gelu = GELU()
        self.chunk = indexing.chosen().chunk

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(self.proj(x))
        value, gate = self.chunk(self.proj(x), 2, -1)
        return value * self.gelu(gate)


class FeedForward(nn.Cell):
    """Applies GEGLU with an inner width of four times the channels, then a linear layer."""

    def __init__(self, rng: np.random.Generator, channels: int) -> None:
        super().__init__()
        self.net = nn.SequentialCell(
            GEGLU(rng, channels, 4 * channels), nn.Identity(), Linear(rng, 4 * channels, channels)
        )

    def construct(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Cell):
    """Applies self-attention, cross-attention to the text and feed-forward, each with pre-norm and a residual."""

    def __init__(
        self, rng: np.random.Generator, channels: int, context_channels: int, heads: int, head_channels: int
    ) -> None:
        super().__init__()
        self.attn1 = CrossAttention(rng, channels, channels, heads, head_channels)
        self.ff = FeedForward(rng, channels)
        self.attn2 = CrossAttention(rng, channels, context_channels, heads, head_channels)
        self.norm1 = LayerNorm(channels)
        self.norm2 = LayerNorm(channels)
        self.norm3 = LayerNorm(channels)

    def construct(self, x: Tensor, context: Tensor) -> Tensor:
        y = self.norm1(x)
        x = x + self.attn1(y, y)
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Cell):
    """Applies a transformer block over the pixels of (B, C, H, W), with linear projections as in SD2."""

    def __init__(
        self, rng: np.random.Generator, channels: int, context_channels: int, head_channels: int, groups: int
    ) -> None:
        super().__init__()
        heads = channels // head_channels
        self.norm = GroupNorm(groups, channels, eps=1e-6)
        self.proj_in = Linear(rng, channels, channels)
        self.transformer_blocks = nn.CellList([TransformerBlock(rng, channels, context_channels, heads, head_channels)])
        self.proj_out = Linear(rng, channels, channels)

    def construct(self, x: Tensor, embedding: Tensor, context: Tensor, size: tuple[int, ...]) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = self.norm(x).reshape(batch, channels, height * width).transpose(0, 2, 1)
        tokens = self.proj_in(tokens)
        for block in self.transformer_blocks:
            tokens = block(tokens, context)
        tokens = self.proj_out(tokens)
        return x + tokens.transpose(0, 2, 1).reshape(batch, channels, height, width)
