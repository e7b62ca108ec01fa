"""Computes the operations of our networks in float64 numpy: the truth that a device is compared with.

Arrays are laid out as the layers' are. Weights have PyTorch's shapes.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def convolution(x: Array, weight: Array, bias: Array, stride: int = 1, at_end: bool = False) -> Array:
    """Convolve (B, C, H, W) with zero padding kernel // 2 on all sides, or only below and on the right."""
    kernel = weight.shape[-1]
    before, after = (0 if at_end else kernel // 2), kernel // 2
    padded = np.pad(x, ((0, 0), (0, 0), (before, after), (before, after)))
    windows: Array = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(2, 3))  # type: ignore[call-overload]
    y = np.einsum("bchwij,ocij->bohw", windows[:, :, ::stride, ::stride], weight, optimize=True)
    return np.asarray(y + bias[:, None, None])


def linear(x: Array, weight: Array, bias: Array | float = 0.0) -> Array:
    """Map the last axis: x weight^T + bias."""
    return np.asarray(x @ weight.T + bias)


def silu(x: Array) -> Array:
    """Compute x * sigmoid(x)."""
    return np.asarray(x / (1 + np.exp(-x)))


def gelu(x: Array) -> Array:
    """Compute x * Phi(x), with the exact normal distribution."""
    return np.asarray(0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))))


def geglu(x: Array, weight: Array, bias: Array) -> Array:
    """Compute values * gelu(gates) of a linear map to both."""
    values, gates = np.split(linear(x, weight, bias), 2, axis=-1)
    return np.asarray(values * gelu(gates))


def group_norm(x: Array, weight: Array, bias: Array, groups: int, eps: float) -> Array:
    """Normalise each group of channels of (B, C, H, W) over channels and pixels."""
    grouped = x.reshape(x.shape[0], groups, -1)
    normal = (grouped - grouped.mean(2, keepdims=True)) / np.sqrt(grouped.var(2, keepdims=True) + eps)
    return np.asarray(normal.reshape(x.shape) * weight[:, None, None] + bias[:, None, None])


def layer_norm(x: Array, weight: Array, bias: Array, eps: float = 1e-5) -> Array:
    """Normalise over the last axis."""
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return np.asarray(normal * weight + bias)


def attention(q: Array, k: Array, v: Array, heads: int, causal: bool = False) -> Array:
    """Compute softmax(q k^T / sqrt(d)) v for each head of (B, N, heads * d).

    causal: a query sees no later key
    """

    def split(x: Array) -> Array:
        return x.reshape(x.shape[0], x.shape[1], heads, -1).transpose(0, 2, 1, 3)

    logits = split(q) @ split(k).transpose(0, 1, 3, 2) / math.sqrt(q.shape[-1] // heads)
    if causal:
        logits = logits + np.triu(np.full(logits.shape[-2:], -np.inf), 1)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    mixed = (shares / shares.sum(-1, keepdims=True)) @ split(v)
    return np.asarray(mixed.transpose(0, 2, 1, 3).reshape(q.shape))


def doubled(x: Array) -> Array:
    """Repeat each pixel of (B, C, H, W) four times."""
    return x.repeat(2, 2).repeat(2, 3)


def timestep_embedding(timesteps: Array, channels: int) -> Array:
    """Embed (B,) as cosines, then sines, of timesteps * 10000^(-i / half)."""
    half = channels // 2
    angles = timesteps[:, None] * np.exp(-math.log(10000) * np.arange(half) / half)
    return np.concatenate([np.cos(angles), np.sin(angles)], -1)
