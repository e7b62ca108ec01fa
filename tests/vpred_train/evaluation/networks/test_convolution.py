"""Convolutions with folded normalisation against float64 numpy, by either kind of operations."""

import numpy as np
import pytest
from mindspore import Tensor
from numpy.typing import NDArray

from vpred_train.evaluation.networks.convolution import Convolution, Depthwise, Padding, folded

Array = NDArray[np.float64]


def convolved(x: Array, weight: Array, stride: int, before: tuple[int, int], after: tuple[int, int]) -> Array:
    """The definition: a sum over the taps."""
    padded = np.pad(x, ((0, 0), (0, 0), (before[0], after[0]), (before[1], after[1])))
    windows = np.lib.stride_tricks.sliding_window_view(padded, weight.shape[2:], (2, 3))[:, :, ::stride, ::stride]
    return np.einsum("bcijkl,ockl->boij", windows, weight)


@pytest.mark.parametrize("padding", ["both", "end", "none"])
@pytest.mark.parametrize(
    ("kernel", "stride"), [((1, 1), 1), ((3, 3), 1), ((3, 3), 2), ((5, 5), 1), ((1, 7), 1), ((7, 1), 1)]
)
def test_convolution_equals_its_definition(
    kernel: tuple[int, int], stride: int, padding: Padding, operations: str
) -> None:
    if padding == "end" and stride == 1:
        return  # no network has it
    rng = np.random.default_rng(0)
    side = 10 if padding == "end" else 11
    x, weight, bias = (
        rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, side, 11), (4, 3, *kernel), 4)
    )
    half = (kernel[0] // 2, kernel[1] // 2)
    before, after = half if padding == "both" else (0, 0), half if padding != "none" else (0, 0)
    expected = convolved(*(each.astype(np.float64) for each in (x, weight)), stride, before, after)
    expected += bias[:, None, None]
    found = Convolution(weight, bias, stride, padding, None)(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_activations_follow() -> None:
    x, weight = (
        9 * np.random.default_rng(0).standard_normal((1, 3, 5, 5)).astype(np.float32),
        np.eye(3, dtype=np.float32),
    )
    for activation, highest in (("relu", np.inf), ("relu6", 6)):
        found = Convolution(weight[:, :, None, None], np.zeros(3, np.float32), activation=activation)(
            Tensor(x)
        ).asnumpy()
        np.testing.assert_array_equal(found, np.clip(x, 0, highest))


@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 6), (3, 2, 8), (5, 1, 7), (5, 2, 10)])
def test_depthwise_convolution_pads_as_tensorflow_does(kernel: int, stride: int, side: int) -> None:
    rng = np.random.default_rng(1)
    x, weight, bias = (
        3 * rng.standard_normal(shape).astype(np.float32) for shape in ((2, 5, side, side), (5, 1, kernel, kernel), 5)
    )
    zeros = kernel - stride  # (ceil(side / stride) - 1) * stride + kernel - side
    dense = np.zeros((5, 5, kernel, kernel))
    dense[np.arange(5), np.arange(5)] = weight[:, 0]
    ends = ((zeros // 2,) * 2, (zeros - zeros // 2,) * 2)
    expected = convolved(x.astype(np.float64), dense, stride, *ends) + bias[:, None, None]
    assert (expected > 6).any() and (expected < 0).any()
    found = Depthwise(weight, bias, stride, side)(Tensor(x)).asnumpy()
    np.testing.assert_allclose(found, np.clip(expected, 0, 6), atol=2e-5)


def test_normalisation_is_folded_in_float64() -> None:
    rng = np.random.default_rng(2)
    tensors = {"c.weight": rng.standard_normal((4, 3, 3, 3)).astype(np.float32)}
    tensors |= {f"n.{part}": rng.uniform(0.5, 2, 4).astype(np.float32) for part in ("weight", "bias", "running_mean")}
    tensors["n.running_var"] = np.array([1e-6, 1e-3, 1, 1e4], np.float32)
    weight, bias = folded(tensors, "c", "n", 1e-3)
    x = rng.standard_normal((1, 3, 3, 3))
    plain = np.einsum("bcij,ocij->o", x, tensors["c.weight"].astype(np.float64))
    gain, shift, mean, variance = (
        tensors[f"n.{part}"].astype(np.float64) for part in ("weight", "bias", "running_mean", "running_var")
    )
    expected = (plain - mean) / np.sqrt(variance + 1e-3) * gain + shift
    np.testing.assert_allclose(np.einsum("bcij,ocij->o", x, weight.astype(np.float64)) + bias, expected, rtol=1e-5)
    assert weight.dtype == bias.dtype == np.float32
