"""Compares a layer, forward and backward, with its truth in float64 numpy.

A gradient is compared along itself and along a random direction with the central difference of the truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mindspore
import numpy as np
from mindspore import ParameterTuple, Tensor, nn, ops
from numpy.typing import NDArray

from launcher.contract.accelerators import ComputeDtype
from vpred_train.arrays import FloatArray
from vpred_train.doctor.check import Measured
from vpred_train.host_copies import to_host
from vpred_train.models.layers import COMPUTE_DTYPES

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
