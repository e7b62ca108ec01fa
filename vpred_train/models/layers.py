"""Defines layers with PyTorch's parameter names and shapes, so that published weights need no renaming here.

A layer computes in the dtype of its input, float32 or half precision. Its weights are float32 and are cast at use.
Norms, softmax and GELU are computed in float32. The compiled operations exist only for float32.
"""

import math

import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops
from mindspore import dtype as mstype

from vpred_train.arrays import FloatArray
from vpred_train.kernels import implementations, library, operations

COMPUTE_DTYPES = {"float32": mstype.float32, "float16": mstype.float16, "bfloat16": mstype.bfloat16}


def uniform(rng: np.random.Generator, shape: tuple[int, ...], fan_in: int) -> Tensor:
    """Draw from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), float32: PyTorch's default for linear layers and convolutions."""
    bound = 1 / math.sqrt(fan_in)
    return Tensor(rng.uniform(-bound, bound, shape).astype(np.float32))


def orthogonal(rng: np.random.Generator, rows: int, columns: int) -> FloatArray:
    """Draw (rows, columns) float32 with orthonormal columns, or with orthonormal rows when there are fewer rows."""
    q, _ = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    return (q if rows >= columns else q.T).astype(np.float32)


def at_centre(matrix: FloatArray, kernel: int) -> FloatArray:
    """Return the kernel (out, in, k, k) float32 that applies `matrix` (out, in) to each position separately."""
    weight = np.zeros((*matrix.shape, kernel, kernel), np.float32)
    weight[:, :, kernel // 2, kernel // 2] = matrix
    return weight


class LowRank(nn.Cell):
    """Computes y = scale * x down^T up^T (Hu et al. 2021, arXiv 2106.09685, eq. 3) for x (n, in).

    down: (rank, in) float32.
    up: (out, rank) float32; it starts as 0, so that fresh factors change nothing.
    """

    def __init__(self, rng: np.random.Generator, shape: tuple[int, int], rank: int, scale: float) -> None:
        super().__init__()
        out_features, in_features = shape
        self.down = Parameter(uniform(rng, (rank, in_features), in_features), name="down")
        self.up = Parameter(Tensor(np.zeros((out_features, rank), np.float32)), name="up")
        self.scale = scale
        self.product = ops.MatMul(transpose_b=True)

    def construct(self, x: Tensor) -> Tensor:
        low = self.scale * self.product(x, self.down.astype(x.dtype))
        return self.product(low, self.up.astype(x.dtype))


class Linear(nn.Cell):
    """Computes y = x W^T + b over the last axis.

    weight: (out, in) float32.
    bias: (out,) float32.
    lora: when set, adds its low-rank product.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_features: int,
        out_features: int,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.weight = Parameter(uniform(rng, (out_features, in_features), in_features), name="weight")
        self.has_bias = bias
        if bias:
            self.bias = Parameter(uniform(rng, (out_features,), in_features), name="bias")
            self.add = ops.BiasAdd()
        self.product = ops.MatMul(transpose_b=True)
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.linear(bias)
        self.by_mint = implementations.chosen().linear == "mint"
        self.lora: LowRank | None = None

    def construct(self, x: Tensor) -> Tensor:
        shape = x.shape
        x = x.reshape(-1, shape[-1])
        y = self.mapped(x)
        if self.lora is not None:
            y = y + self.lora(x)
        return y.reshape((*shape[:-1], -1))

    def mapped(self, x: Tensor) -> Tensor:
        """Apply weight and bias: (n, in) -> (n, out)."""
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(x, self.weight, self.bias) if self.has_bias else self.operation(x, self.weight)
        weight = self.weight.astype(x.dtype)
        bias = self.bias.astype(x.dtype) if self.has_bias else None
        if self.by_mint:
            return mint.nn.functional.linear(x, weight, bias)
        y = self.product(x, weight)
        return y if bias is None else self.add(y, bias)


class Conv2d(nn.Cell):
    """Computes the 2-D convolution of (B, C, H, W) with zero padding kernel // 2.

    weight: (out, in, k, k) float32.
    bias: (out,) float32.
    matrix: (out, in), initialises the weight to apply this map to each position separately.
    pad_end: pad only below and on the right, as Stable Diffusion's autoencoder does where it halves an image.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        matrix: FloatArray | None = None,
        pad_end: bool = False,
    ) -> None:
        super().__init__()
        fan_in = in_channels * kernel * kernel
        if matrix is None:
            weight = uniform(rng, (out_channels, in_channels, kernel, kernel), fan_in)
        else:
            weight = Tensor(at_centre(matrix, kernel))
        self.weight = Parameter(weight, name="weight")
        self.bias = Parameter(uniform(rng, (out_channels,), fan_in), name="bias")
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.convolution(kernel, stride, pad_end)
        self.by_mint = implementations.chosen().convolution == "mint"
        before, after = (0 if pad_end else kernel // 2), kernel // 2
        self.stride, self.padding, self.padded_end = stride, before, (0, after, 0, after) if pad_end else ()
        self.add = ops.BiasAdd()  # on CPU a broadcasting + is slower and keeps an index of 16 bytes per element
        self.convolve = ops.Conv2D(
            out_channels, kernel, pad_mode="pad", pad=(before, after, before, after), stride=stride
        )

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(x, self.weight, self.bias)
        weight, bias = self.weight.astype(x.dtype), self.bias.astype(x.dtype)
        if self.by_mint:
            if self.padded_end:
                x = mint.nn.functional.pad(x, self.padded_end)
            return mint.nn.functional.conv2d(x, weight, bias, self.stride, self.padding)
        return self.add(self.convolve(x, weight), bias)


class Doubled(nn.Cell):
    """Repeats each pixel four times: (B, C, H, W) -> (B, C, 2H, 2W) (nearest-neighbour interpolation)."""

    def __init__(self) -> None:
        super().__init__()
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.doubled()

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(x)
        batch, channels, height, width = x.shape
        x = ops.tile(x.reshape(batch, channels, height, 1, width, 1), (1, 1, 1, 2, 1, 2))
        return x.reshape(batch, channels, 2 * height, 2 * width)


@ops.constexpr
def constant(size: int, value: float) -> Tensor:
    """Return a tensor (size,) float32 filled with `value`."""
    return Tensor(np.full(size, value, np.float32))


class GroupNorm(nn.Cell):
    """Applies group normalisation to (B, C, H, W) in float32 (Wu & He 2018, arXiv 1803.08494).

    MindSpore's CPU kernel runs at 1 GB/s. On CPU, batch normalisation does the same three times faster: once with each
    group as a channel, then with fixed mean 0 and variance 1 to apply weight and bias.
    silu: whether SiLU follows.
    """

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, silu: bool = False) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(channels, np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(channels, np.float32)), name="bias")
        self.groups, self.eps, self.silu = groups, eps, silu
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.group_norm(groups, silu)
        self.as_batch_norm = implementations.chosen().group_norm == "batch_norm"
        self.normalise = ops.BatchNorm(is_training=True, epsilon=eps, momentum=0.0)  # keeps no running statistics
        self.scale = ops.BatchNorm(is_training=False, epsilon=1e-12)

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(x, self.weight, self.bias, constant(1, self.eps))[0]
        x_32 = x.astype(mstype.float32)
        y = self.by_batch_norm(x_32) if self.as_batch_norm else self.by_group_norm(x_32)
        y = y.astype(x.dtype)
        return ops.silu(y) if self.silu else y

    def by_group_norm(self, x: Tensor) -> Tensor:
        return ops.group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def by_batch_norm(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        rows = batch * self.groups
        one, zero = constant(rows, 1.0), constant(rows, 0.0)
        grouped = x.reshape(1, rows, channels // self.groups * height, width)
        y = self.normalise(grouped, one, zero, zero, one)[0].reshape(x.shape)
        mean, variance = constant(channels, 0.0), constant(channels, 1.0)
        return self.scale(y, self.weight, self.bias, mean, variance)[0]


class LayerNorm(nn.Cell):
    """Applies layer normalisation over the last axis in float32 (Ba et al. 2016, arXiv 1607.06450)."""

    def __init__(self, features: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = Parameter(Tensor(np.ones(features, np.float32)), name="weight")
        self.bias = Parameter(Tensor(np.zeros(features, np.float32)), name="bias")
        self.features, self.eps = features, eps
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            self.operation = operations.layer_norm()
        self.by_mint = implementations.chosen().layer_norm == "mint"
        self.normalise = ops.LayerNorm(begin_norm_axis=-1, begin_params_axis=-1, epsilon=eps)

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled and x.dtype == mstype.float32:
            return self.operation(x, self.weight, self.bias, constant(1, self.eps))[0]
        x_32 = x.astype(mstype.float32)
        if self.by_mint:
            y = mint.nn.functional.layer_norm(x_32, (self.features,), self.weight, self.bias, self.eps)
        else:
            y, _, _ = self.normalise(x_32, self.weight, self.bias)
        return y.astype(x.dtype)


class GELU(nn.Cell):
    """Computes exact GELU, x * Phi(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415).

    It is computed in float32, because 1 + erf cancels.
    """

    def construct(self, x: Tensor) -> Tensor:
        x_32 = x.astype(mstype.float32)
        return (0.5 * x_32 * (1.0 + ops.erf(x_32 * 0.7071067811865476))).astype(x.dtype)


class QuickGELU(nn.Cell):
    """Computes x * sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (same paper, section 2)."""

    def construct(self, x: Tensor) -> Tensor:
        x_32 = x.astype(mstype.float32)
        return (x_32 * ops.sigmoid(1.702 * x_32)).astype(x.dtype)
