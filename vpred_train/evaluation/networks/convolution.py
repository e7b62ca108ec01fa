"""Computes convolutions of fixed weights, with batch normalisation folded in."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from mindspore import Parameter, Tensor, mint, nn, ops

from vpred_train.kernels import implementations, library, operations
from vpred_train.weights.formats.stored_tensor import Float32

Padding = Literal["both", "end", "none"]


def folded(tensors: Mapping[str, Float32], convolution: str, norm: str, eps: float) -> tuple[Float32, Float32]:
    """Return weight (out, in, kh, kw) and bias (out,) of a convolution and the batch normalisation that follows.

    The products are computed in float64 and rounded once.
    """
    weight, gain, shift, mean, variance = (
        tensors[name].astype(np.float64)
        for name in (
            f"{convolution}.weight",
            *(f"{norm}.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        )
    )
    scale = gain / np.sqrt(variance + eps)
    return (weight * scale[:, None, None, None]).astype(np.float32), (shift - mean * scale).astype(np.float32)


class Convolution(nn.Cell):
    """Computes the 2-D convolution of (B, C, H, W) in float32, then an activation.

    weight: (out, in, kh, kw); kh and kw are odd.
    bias: (out,).
    padding: zeros of half a kernel on "both" ends of each axis or at its "end"; "none" keeps windows within the image.
    """

    def __init__(
        self,
        weight: Float32,
        bias: Float32,
        stride: int = 1,
        padding: Padding = "both",
        activation: Literal["relu", "relu6"] | None = "relu",
    ) -> None:
        super().__init__()
        height, width = self.kernel = weight.shape[2:]
        self.stride, self.padding = stride, padding
        self.before = (height // 2, width // 2) if padding == "both" else (0, 0)
        self.after = (height // 2, width // 2) if padding != "none" else (0, 0)
        self.active = activation is not None
        self.activation = ops.ReLU6() if activation == "relu6" else ops.ReLU()
        self.by_mint = implementations.chosen().convolution == "mint"
        self.use_compiled = library.loaded() is not None
        if self.use_compiled:
            # The compiled convolution always pads. The windows within the image are among its results.
            at_end = padding == "end" or (padding == "none" and stride > 1)
            self.operation = operations.convolution((height, width), stride, at_end)
            self.border = (0, 0) if at_end or padding == "both" else (height // 2, width // 2)
        elif not self.by_mint:
            weight = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1, 1, 1)  # the taps on the channel axis
            self.product = ops.Conv2D(len(weight), 1)
            self.add = ops.BiasAdd()
        self.weight = Parameter(Tensor(np.ascontiguousarray(weight)), name="weight", requires_grad=False)
        self.bias = Parameter(Tensor(bias), name="bias", requires_grad=False)

    def construct(self, x: Tensor) -> Tensor:
        if self.use_compiled:
            y = self.cropped(self.operation(x, self.weight, self.bias), x.shape)
        elif self.by_mint:
            y = mint.nn.functional.conv2d(self.padded(x), self.weight, self.bias, self.stride)
        else:
            y = self.add(self.product(self.taps(self.padded(x)), self.weight), self.bias)
        return self.activation(y) if self.active else y

    def sides(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """Return height and width of the result for an input of `shape`."""
        height = (shape[2] + self.before[0] + self.after[0] - self.kernel[0]) // self.stride + 1
        return height, (shape[3] + self.before[1] + self.after[1] - self.kernel[1]) // self.stride + 1

    def cropped(self, y: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Cut off the windows that reach beyond the image, when only those within it are wanted."""
        if self.padding != "none":
            return y
        height, width = self.sides(shape)
        top, left = self.border
        return y[:, :, top : top + height, left : left + width]

    def padded(self, x: Tensor) -> Tensor:
        """Add the zeros around the image."""
        if self.padding == "none" or self.after == (0, 0):
            return x
        return ops.pad(x, (self.before[1], self.after[1], self.before[0], self.after[0]))

    def taps(self, x: Tensor) -> Tensor:
        """Return the pixels under each tap of the kernel, one after the other on the channel axis."""
        height = (x.shape[2] - self.kernel[0]) // self.stride + 1
        width = (x.shape[3] - self.kernel[1]) // self.stride + 1
        parts: tuple[Tensor, ...] = ()
        for row in range(self.kernel[0]):
            for column in range(self.kernel[1]):
                bottom, right = row + (height - 1) * self.stride + 1, column + (width - 1) * self.stride + 1
                parts += (x[:, :, row : bottom : self.stride, column : right : self.stride],)
        return ops.concat(parts, 1) if len(parts) > 1 else parts[0]


class Depthwise(nn.Cell):
    """Computes a convolution of each channel of (B, C, side, side) by itself, then ReLU6.

    It pads as TensorFlow's "same": where the zeros are odd in number, the larger half is at the end. MindSpore's kernel
    for CPU is a plain loop. Here one product for each channel maps whole rows, with the taps in a banded matrix.
    weight: (C, 1, k, k).
    bias: (C,).
    side: pixels of the input; a multiple of `stride`.
    """

    def __init__(self, weight: Float32, bias: Float32, stride: int, side: int) -> None:
        super().__init__()
        channels, kernel = weight.shape[0], weight.shape[2]
        self.kernel, self.stride, self.result = kernel, stride, side // stride
        zeros = kernel - stride
        self.before, self.after = zeros // 2, zeros - zeros // 2
        band = np.zeros((channels, kernel, side, self.result), np.float32)
        for column in range(self.result):
            for tap in range(kernel):
                source = column * stride + tap - self.before
                if 0 <= source < side:
                    band[:, :, source, column] = weight[:, 0, :, tap]
        self.band = Parameter(Tensor(band.reshape(channels, kernel * side, -1)), name="band", requires_grad=False)
        self.bias = Parameter(Tensor(bias), name="bias", requires_grad=False)
        self.product = ops.BatchMatMul()
        self.add = ops.BiasAdd()
        self.activation = ops.ReLU6()

    def construct(self, x: Tensor) -> Tensor:
        batch, channels, _, side = x.shape
        rows = ops.pad(x, (0, 0, self.before, self.after))
        parts: tuple[Tensor, ...] = ()
        for tap in range(self.kernel):
            parts += (rows[:, :, tap : tap + (self.result - 1) * self.stride + 1 : self.stride],)
        stacked = ops.concat(parts, 3).transpose(1, 0, 2, 3).reshape(channels, -1, self.kernel * side)
        y = self.product(stacked, self.band).reshape(channels, batch, self.result, self.result)
        return self.activation(self.add(y.transpose(1, 0, 2, 3), self.bias))
