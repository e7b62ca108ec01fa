"""Compares every operation of our networks, forward and backward, with float64 numpy.

The operations are the project's own layers, so that what is tried is what trains. A gradient is compared along
itself and along a random direction with the central difference of the truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mindspore
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from numpy.typing import NDArray

from launcher.contract.accelerators import ComputeDtype
from vpred_train.arrays import FloatArray
from vpred_train.config.model import UNetConfig
from vpred_train.doctor import truths
from vpred_train.doctor.check import Item, Measured
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_host
from vpred_train.models.attention import GEGLU, Attention
from vpred_train.models.layers import COMPUTE_DTYPES, GELU, Conv2d, Doubled, GroupNorm, LayerNorm, Linear, LowRank
from vpred_train.models.text_encoder import Embedding, SelfAttention
from vpred_train.models.unet import ResBlock, timestep_embedding

# Largest deviation, relative to the largest element. Gradients may deviate three times as much.
TOLERANCE: dict[ComputeDtype, float] = {"float32": 2e-5, "float16": 4e-3, "bfloat16": 3e-2}
GRADIENT_FACTOR = 3
DIFFERENCE = 1e-5  # half the distance of the two points of a central difference

Rng = np.random.Generator
Arrays = tuple[NDArray[Any], ...]


@dataclass(frozen=True)
class Operation:
    """Is one operation.

    make: builds the layer from a generator
    truth: float64 numpy of (inputs..., parameters...)
    shapes: shapes of the inputs
    parameters: names of the layer's parameters, in the order in which `truth` takes them
    whole_numbers: the input counts rows of a table, below this number; such an input has no gradient
    """

    make: Callable[[Rng], Any]
    truth: Callable[..., Any]
    shapes: tuple[tuple[int, ...], ...]
    parameters: tuple[str, ...] = ()
    remedy: str = ""
    whole_numbers: int = 0


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


def compare(operation: Operation, dtype: ComputeDtype) -> Measured:
    """Compare one operation in one dtype with its truth."""
    rng = np.random.default_rng(7)
    cell = operation.make(rng)
    inputs = [draw(operation, shape, rng, dtype) for shape in operation.shapes]
    values = set_parameters(cell, operation.parameters, rng, dtype)
    expected = np.asarray(operation.truth(*map(exact, (*inputs, *values))))
    weights = rng.standard_normal(expected.shape).astype(np.float32)
    found, gradients = run(cell, operation, dtype, inputs, weights)
    forward = float(np.abs(found - expected).max() / np.abs(expected).max())
    variables: list[NDArray[Any]] = [*inputs, *values]
    first = 1 if operation.whole_numbers else 0
    slopes = [
        slope_error(operation.truth, variables, place, gradient, weights, rng)
        for place, gradient in enumerate(gradients, start=first)
    ]
    backward = max(slopes, default=0.0)
    tolerance = TOLERANCE[dtype]
    share = max(forward / tolerance, backward / (GRADIENT_FACTOR * tolerance))
    return Measured(
        f"forward {forward:.1e}, gradient {backward:.1e}",
        verdict="ok" if share <= 1 else "failed",  # NaN fails too
        wanted=f"{tolerance:.1e}, {GRADIENT_FACTOR * tolerance:.1e} of the largest value",
        figure=share,
        unit="of what is allowed",
    )


def draw(operation: Operation, shape: tuple[int, ...], rng: Rng, dtype: ComputeDtype) -> NDArray[Any]:
    """Draw an input. Its values are exact in `dtype`, so that the truth starts from what the operation sees."""
    if operation.whole_numbers:
        return rng.integers(operation.whole_numbers, size=shape).astype(np.int32)
    return rounded(rng.standard_normal(shape).astype(np.float32), dtype)


def set_parameters(cell: Any, names: Sequence[str], rng: Rng, dtype: ComputeDtype) -> list[FloatArray]:
    """Give the parameters values that are exact in `dtype`, and return them. Those of norms are no longer 1 and 0."""
    named = dict(cell.parameters_and_names())
    values = []
    for name in names:
        value = to_host(named[name])
        moved = value if value.ndim > 1 and value.any() else value + 0.3 * rng.standard_normal(value.shape)
        values.append(rounded(moved.astype(np.float32), dtype))
        named[name].set_data(Tensor(values[-1]))
    return values


def rounded(values: FloatArray, dtype: ComputeDtype) -> FloatArray:
    """Round float32 values to those of `dtype`. numpy has no bfloat16: its bits are the upper half of float32's."""
    if dtype == "float32":
        return values
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32)
    bits = np.ascontiguousarray(values).view(np.uint32)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return bits.astype(np.uint32).view(np.float32).reshape(values.shape)


def exact(values: NDArray[Any]) -> NDArray[Any]:
    """Return float64 values; whole numbers stay as they are."""
    return values if np.issubdtype(values.dtype, np.integer) else values.astype(np.float64)


class WeightedSum(nn.Cell):
    """Sums a layer's output with random weights: the function whose gradient is compared. Returns the output too."""

    def __init__(self, cell: Any, dtype: ComputeDtype) -> None:
        super().__init__()
        self.cell, self.dtype = cell, COMPUTE_DTYPES[dtype]

    def construct(self, weights: Tensor, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        cast = ()
        for each in inputs:
            cast += (self.seen(each),)  # type: ignore[assignment]  # an annotation would not pass the graph parser
        y = self.cell(*cast).astype(mindspore.float32)
        return (y * weights).sum(), y

    def seen(self, x: Tensor) -> Tensor:
        """Return an input as the layer gets it: whole numbers stay."""
        return x.astype(self.dtype) if x.dtype == mindspore.float32 else x


class Differentiated(nn.Cell):
    """Computes the gradients of a WeightedSum in its float inputs and in `parameters`."""

    def __init__(self, function: WeightedSum, inputs: tuple[int, ...], parameters: list[Any]) -> None:
        super().__init__()
        self.function = function
        weights = ParameterTuple(parameters) if parameters else None
        self.differentiate = ops.value_and_grad(function, inputs or None, weights, has_aux=True)

    def construct(self, weights: Tensor, *inputs: Tensor) -> Any:
        return self.differentiate(weights, *inputs)


def run(
    cell: Any, operation: Operation, dtype: ComputeDtype, inputs: Sequence[NDArray[Any]], weights: FloatArray
) -> tuple[FloatArray, list[FloatArray]]:
    """Return the layer's output, and the gradients in its float inputs and its parameters, in their order."""
    named = dict(cell.parameters_and_names())
    positions = () if operation.whole_numbers else tuple(range(1, len(inputs) + 1))
    parameters = [named[name] for name in operation.parameters]
    step = Differentiated(WeightedSum(cell, dtype), positions, parameters)
    (_, y), gradients = step(Tensor(weights), *map(Tensor, inputs))
    return to_host(y), [to_host(each) for each in flat(gradients)]


def flat(tensors: Any) -> list[Any]:
    """Flatten nested tuples of tensors."""
    return [tensors] if isinstance(tensors, Tensor) else [each for part in tensors for each in flat(part)]


def slope_error(
    truth: Callable[..., Any],
    variables: Sequence[NDArray[Any]],
    place: int,
    gradient: FloatArray,
    weights: FloatArray,
    rng: Rng,
) -> float:
    """Return the larger error of a gradient along two directions, relative to the size that such a slope usually has.

    Along the gradient itself a wrong scale shows, and along a random direction everything else.
    """
    norm, root = float(np.linalg.norm(gradient)), math.sqrt(gradient.size)
    along = gradient.astype(np.float64) * (root / max(norm, 1e-30))
    found = []
    for direction, usual in ((along, norm * root), (rng.standard_normal(gradient.shape), norm)):
        values = []
        for sign in (1, -1):
            moved = [exact(each) for each in variables]
            moved[place] = moved[place] + sign * DIFFERENCE * direction
            values.append(float((truth(*moved) * weights).sum()))
        slope = (values[0] - values[1]) / (2 * DIFFERENCE)
        found.append(abs(float((gradient * direction).sum()) - slope) / max(usual, 1e-9))
    return max(found)
