"""Two equal ways to convolve, chosen per accelerator (see `launcher.contract.accelerators`).

`native` is MindSpore's own operation, right on Ascend. On CPU its kernel is slow, and `matmul` gathers the patches
and leaves the work to one matrix product. Both are called as `convolve(x, weight)`: NCHW input, OIHW weights.
Zeros surround the input: `padding` on every side, and `extra` more below and on the right.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray


class NativeConvolution(nn.Cell):
    """`ops.Conv2D`."""

    def __init__(self, out_channels: int, kernel: int, stride: int, padding: int, extra: int = 0) -> None:
        super().__init__()
        sides = (padding, padding + extra) * 2  # top, bottom, left, right
        self.convolve = ops.Conv2D(out_channels, kernel, pad_mode="pad", pad=sides, stride=stride)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.convolve(x, weight)


class MatmulConvolution(nn.Cell):
    """Patches by one Gather, then one product; the backward pass is written the same way.

    Autodiff of Gather is a scatter-add, which is slow on CPU. The gradient of the input is itself a gather: input
    pixel n is read by tap k of exactly one output pixel, or of none (then the index names an appended zero row).
    """

    def __init__(self, out_channels: int, kernel: int, stride: int, padding: int, extra: int = 0) -> None:
        super().__init__()
        del out_channels  # read from the weight; the signature is shared
        self.kernel, self.stride, self.padding, self.extra = kernel, stride, padding, extra
        self.gather = ops.Gather()
        self.product = ops.MatMul()
        self.product_transposed = ops.MatMul(transpose_a=True)

    def patches(self, x: Tensor, index: Tensor) -> Tensor:
        """(B, C, H, W) -> (B * rows, taps * C): one row per target pixel, missing taps are zero."""
        batch, channels, height, width = x.shape
        rows = x.reshape(batch, channels, height * width).transpose(0, 2, 1)
        if self.kernel == 1 and self.stride == 1:
            return rows.reshape(batch * height * width, channels)
        rows = ops.concat((rows, ops.zeros((batch, 1, channels), x.dtype)), 1)
        return self.gather(rows, index, 1).reshape(-1, self.kernel * self.kernel * channels)

    def construct(self, x: Tensor, weight: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        out_channels = weight.shape[0]
        out_height = (height + 2 * self.padding + self.extra - self.kernel) // self.stride + 1
        out_width = (width + 2 * self.padding + self.extra - self.kernel) // self.stride + 1
        patches = self.patches(x, read_index(height, width, self.kernel, self.stride, self.padding, self.extra))
        matrix = weight.transpose(2, 3, 1, 0).reshape(-1, out_channels)
        y = self.product(patches, matrix).reshape(batch, out_height * out_width, out_channels)
        return y.transpose(0, 2, 1).reshape(batch, out_channels, out_height, out_width)

    def bprop(self, x: Tensor, weight: Tensor, out: Tensor, dout: Tensor) -> tuple[Tensor, Tensor]:
        batch, channels, height, width = x.shape
        out_channels = weight.shape[0]
        patches = self.patches(x, read_index(height, width, self.kernel, self.stride, self.padding, self.extra))
        dy = dout.reshape(batch, out_channels, -1).transpose(0, 2, 1).reshape(-1, out_channels)
        dmatrix = self.product_transposed(patches, dy)
        dweight = dmatrix.reshape(self.kernel, self.kernel, channels, out_channels).transpose(3, 2, 0, 1)
        matrix = weight.transpose(2, 3, 0, 1).reshape(-1, channels)
        dpatches = self.patches(dout, written_index(height, width, self.kernel, self.stride, self.padding, self.extra))
        dx = self.product(dpatches, matrix).reshape(batch, height * width, channels)
        return dx.transpose(0, 2, 1).reshape(batch, channels, height, width), dweight


def patch_indices(
    height: int, width: int, kernel: int, stride: int, padding: int, extra: int = 0
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Where each tap of each output pixel reads, and by which output pixel each input pixel is read through a tap.

    Returns int32 arrays of (out_pixels * taps) and (in_pixels * taps) flat pixel numbers. The number one past the
    last pixel stands for zero.
    """
    out_height = (height + 2 * padding + extra - kernel) // stride + 1
    out_width = (width + 2 * padding + extra - kernel) // stride + 1
    rows, columns = np.mgrid[:out_height, :out_width]
    taps_y, taps_x = np.divmod(np.arange(kernel * kernel), kernel)
    y = rows.reshape(-1, 1) * stride + taps_y - padding
    x = columns.reshape(-1, 1) * stride + taps_x - padding
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    read = np.where(inside, y * width + x, height * width)
    written = np.full((height * width, kernel * kernel), out_height * out_width)
    pixel, tap = np.nonzero(inside)
    written[read[pixel, tap], tap] = pixel
    return read.reshape(-1).astype(np.int32), written.reshape(-1).astype(np.int32)


@ops.constexpr
def read_index(height: int, width: int, kernel: int, stride: int, padding: int, extra: int) -> Tensor:
    """`patch_indices` of the forward pass as a constant of the graph."""
    return Tensor(patch_indices(height, width, kernel, stride, padding, extra)[0])


@ops.constexpr
def written_index(height: int, width: int, kernel: int, stride: int, padding: int, extra: int) -> Tensor:
    """`patch_indices` of the backward pass as a constant of the graph."""
    return Tensor(patch_indices(height, width, kernel, stride, padding, extra)[1])


CONVOLUTIONS: dict[str, Callable[[int, int, int, int, int], nn.Cell]] = {
    "native": NativeConvolution,
    "matmul": MatmulConvolution,
}
