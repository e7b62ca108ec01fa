"""The doctor's comparison of operations: right layers pass by far, and each wrong one is caught."""

import math
from functools import partial
from typing import Any

import mindspore
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from vpred_train.config.model import ModelConfig
from vpred_train.doctor import truths
from vpred_train.doctor.comparison import TOLERANCE, Operation, compare, rounded, slope_error
from vpred_train.doctor.operations import OPERATIONS
from vpred_train.models.attention import Attention
from vpred_train.models.layers import Conv2d, GroupNorm, LayerNorm, Linear
from vpred_train.models.networks import Networks

MARGIN = {"float32": 0.2, "float16": 0.5}  # share of what is allowed that right layers may use


@pytest.mark.parametrize("dtype", MARGIN)
@pytest.mark.parametrize("name", OPERATIONS)
def test_right_layers_pass_with_a_margin(name: str, dtype: Any) -> None:
    measured = compare(OPERATIONS[name], dtype)
    assert measured.verdict == "ok", measured.found
    assert measured.figure is not None and measured.figure < MARGIN[dtype], measured.found


def test_plain_layers_pass_too(operations: str) -> None:
    """Also where there are no compiled operations."""
    for name in ("convolution of stride 2", "linear", "group norm and SiLU", "layer norm", "GEGLU", "cross-attention"):
        measured = compare(OPERATIONS[name], "float32")
        assert measured.figure is not None and measured.figure < MARGIN["float32"], (name, measured.found)


class TanhGelu(nn.Cell):
    """The approximation that other frameworks call gelu."""

    def construct(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + ops.tanh(0.7978845608 * (x + 0.044715 * x**3)))


class CoarseConvolution(Conv2d):
    """A convolution whose inputs are rounded to 11 bits of mantissa, as HF32's."""

    def construct(self, x: Tensor) -> Tensor:
        return super().construct(x.astype(mindspore.float16).astype(mindspore.float32))


class OtherScale(Attention):
    """Attention whose scale is 1 % off."""

    def __init__(self, heads: int, head_channels: int) -> None:
        super().__init__(heads, head_channels)
        self.use_compiled, self.scale = False, 1.01 / math.sqrt(head_channels)


class WrongGradient(Linear):
    """A linear map whose forward pass is right, and whose gradient in the bias is half of what it should be."""

    def construct(self, x: Tensor) -> Tensor:
        bias = 0.5 * self.bias + ops.stop_gradient(0.5 * self.bias)
        return ops.matmul(x, self.weight.T) + bias


class NotFinite(LayerNorm):
    """A layer norm with one NaN."""

    def construct(self, x: Tensor) -> Tensor:
        y = super().construct(x)
        return ops.concat((y[..., :1] * float("nan"), y[..., 1:]), -1)


WRONG: dict[str, tuple[str, Any]] = {
    "tanh GELU": ("GELU", lambda rng: TanhGelu()),
    "another epsilon": ("layer norm", lambda rng: LayerNorm(320, eps=1e-3)),
    "a convolution in HF32": ("convolution 1 x 1", lambda rng: CoarseConvolution(rng, 96, 64, 1)),
    "attention 1 % off": ("self-attention", lambda rng: OtherScale(5, 64)),
    "half a gradient": ("linear", lambda rng: WrongGradient(rng, 320, 640)),
    "other groups": ("group norm", lambda rng: GroupNorm(16, 320, eps=1e-6)),
    "NaN": ("layer norm", lambda rng: NotFinite(320)),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_layer_fails(wrong: str) -> None:
    name, make = WRONG[wrong]
    right = OPERATIONS[name]
    measured = compare(Operation(make, right.truth, right.shapes, right.parameters), "float32")
    assert measured.verdict == "failed", measured.found
    if wrong == "half a gradient":
        forward = float(measured.found.split()[1].rstrip(","))
        assert forward < TOLERANCE["float32"]


def test_every_layer_of_the_networks_is_tried() -> None:
    """Every class of layer that has an operation of its own, in all three networks, is in some entry of the table."""
    model = ModelConfig.model_validate(
        {
            "unet": {"model_channels": 16, "norm_groups": 8, "head_channels": 8, "context_channels": 16},
            "text_encoder": {"width": 16, "heads": 2, "layers": 1},
            "vae": {"channels": 16, "norm_groups": 8},
        }
    )
    containers = (nn.CellList, nn.SequentialCell, nn.Identity)

    def leaves(cell: nn.Cell) -> set[str]:
        each = [layer for _, layer in cell.cells_and_names() if not isinstance(layer, containers)]
        return {type(layer).__name__ for layer in each if not layer.name_cells() or type(layer).__name__ == "GEGLU"}

    tried = set().union(*(leaves(operation.make(np.random.default_rng(0))) for operation in OPERATIONS.values()))
    assert leaves(Networks(model, 0)) - {"InputConvolution"} <= tried  # it is a Conv2d with the arguments of a block


def test_bfloat16_is_rounded_to_nearest_even() -> None:
    """numpy has no bfloat16: MindSpore's conversion is the reference."""
    values = np.random.default_rng(1).standard_normal(4096).astype(np.float32) * 1e3
    values[:3] = [1 + 2.0**-8, 1 + 3 * 2.0**-8, 0.0]  # two ties and zero
    wanted = Tensor(values).astype(mindspore.bfloat16).astype(mindspore.float32).asnumpy()
    np.testing.assert_array_equal(rounded(values, "bfloat16"), wanted)
    np.testing.assert_array_equal(rounded(wanted, "bfloat16"), wanted)


def test_the_truth_of_convolution_is_the_sum_over_the_window() -> None:
    """Against the definition, one output at a time."""
    rng = np.random.default_rng(2)
    x, weight, bias = rng.standard_normal((1, 2, 5, 4)), rng.standard_normal((3, 2, 3, 3)), rng.standard_normal(3)
    for at_end in (False, True):
        found = truths.convolution(x, weight, bias, stride=2, at_end=at_end)
        padded = np.zeros((2, 8, 8))
        start = 0 if at_end else 1
        padded[:, start : start + 5, start : start + 4] = x[0]
        for out, row, column in np.ndindex(*found.shape[1:]):
            window = padded[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
            assert found[0, out, row, column] == pytest.approx((window * weight[out]).sum() + bias[out])


def test_a_slope_is_taken_in_float64() -> None:
    """The central difference of a cubic is exact but for the step's square."""
    x = np.linspace(-1, 1, 50).astype(np.float32)
    gradient = (3 * x.astype(np.float64) ** 2).astype(np.float32)
    error = partial(slope_error, lambda values: values**3, [x], 0, weights=np.ones(50, np.float32))
    assert error(gradient, rng=np.random.default_rng(3)) < 1e-6
    assert error(np.float32(1.01) * gradient, rng=np.random.default_rng(3)) == pytest.approx(0.01, rel=0.02)
