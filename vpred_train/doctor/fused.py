"""Compares operations that do several things at once with the plain ones that do the same."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from mindspore import Parameter, Tensor, nn, ops

from launcher.contract.accelerators import ComputeDtype, Operations
from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import OptimizerConfig
from vpred_train.distributed.flat_arrays import FlatArrays
from vpred_train.distributed.spans import Span
from vpred_train.doctor.check import Item, Measured, left_out
from vpred_train.doctor.comparison import GRADIENT_FACTOR, TOLERANCE, Operation, draw, exact, run, set_parameters
from vpred_train.doctor.operations import OPERATIONS
from vpred_train.doctor.station import Station
from vpred_train.host_copies import to_host
from vpred_train.kernels import implementations, library
from vpred_train.optim.optimizers import OPTIMIZERS

UPDATE_STEPS = 3
UPDATE_TOLERANCE = 1e-6
ELEMENTS = 4096
RATE = 1e-2
REMEDY = f"make the compiled operations again: {library.BUILD_COMMAND}; without them MindSpore's own are used"
# The entries of OPERATIONS for which there is a compiled operation.
COMPILED = (
    *("convolution 1 x 1", "convolution of stride 2", "convolution padded at the end"),
    *("linear", "group norm and SiLU", "layer norm", "GEGLU", "cross-attention", "doubling"),
)


# Kind of operation in the accelerator's table -> an entry of OPERATIONS that has it.
BY_KIND = {
    "convolution": "convolution of stride 2",
    "layer_norm": "layer norm",
    "group_norm": "group norm and SiLU",
    "linear": "linear",
    "indexing": "GEGLU",
    "attention": "cross-attention",
}


def items(station: Station) -> Sequence[Item]:
    """List the fused operations of this accelerator, and those for which its table has a choice."""
    updates = [
        Item("compiled AdamW", compiled_adamw, REMEDY),
        Item("ops.AdamWeightDecay", adam_weight_decay, "leave the fused update off; update CANN or MindSpore"),
    ]
    own = [Item(f"compiled {name}", partial(compiled, OPERATIONS[name]), REMEDY) for name in COMPILED]
    return [*own, *choices(station), *updates]


def choices(station: Station) -> list[Item]:
    """List each choice of the accelerator's table beside the one in use, in the dtype of the recipe."""
    used, dtype = station.accelerator.operations, station.config.precision.dtype
    return [
        Item(
            f"{kind}: {getattr(used, kind)} and {other}, {dtype}",
            partial(against, OPERATIONS[entry], replace(used, **{kind: other}), dtype),
            f"set operations.{kind} in the cluster file to the one that `operations` found right",
        )
        for kind, entry in BY_KIND.items()
        for other in station.accelerator.known_operations[kind]
        if other != getattr(used, kind)
    ]


def against(operation: Operation, other: Operations, dtype: ComputeDtype) -> Measured:
    """Compare a layer with the same layer of other implementations, forward and backward."""
    return agreement(operation, dtype, lambda: plain(operation), lambda: of_choice(operation, other))


def of_choice(operation: Operation, choice: Operations) -> Any:
    """Make a layer of other implementations than those in use."""
    used = implementations.chosen()
    implementations.choose(choice)
    try:
        return plain(operation)
    finally:
        implementations.choose(used)


def compiled(operation: Operation) -> Measured:
    """Compare a layer's compiled operation with MindSpore's own, forward and backward."""
    if library.loaded() is None:
        return left_out("no compiled operations are in use here")
    return agreement(operation, "float32", lambda: fresh(operation), lambda: plain(operation))


def agreement(
    operation: Operation, dtype: ComputeDtype, first: Callable[[], Any], second: Callable[[], Any]
) -> Measured:
    """Compare two layers of the same weights, forward and backward."""
    results = []
    for make in (first, second):
        rng, cell = np.random.default_rng(11), make()
        inputs = [draw(operation, shape, rng, dtype) for shape in operation.shapes]
        values = set_parameters(cell, operation.parameters, rng, dtype)
        shape = np.shape(operation.truth(*map(exact, (*inputs, *values))))
        y, gradients = run(cell, operation, dtype, inputs, rng.standard_normal(shape).astype(np.float32))
        results.append([y, *gradients])
    worst = max(deviation(found, wanted) for found, wanted in zip(*results, strict=True))
    return of_deviation(worst, 2 * GRADIENT_FACTOR * TOLERANCE[dtype])  # both round


def fresh(operation: Operation) -> Any:
    """Make a layer."""
    return operation.make(np.random.default_rng(12))


def plain(operation: Operation) -> Any:
    """Make a layer that uses no compiled operation."""
    cell = fresh(operation)
    for _, layer in cell.cells_and_names():
        if hasattr(layer, "use_compiled"):
            layer.use_compiled = False
    return cell


def deviation(found: FloatArray, wanted: Any) -> float:
    """Return the largest deviation, relative to the largest value that is wanted."""
    return float(np.abs(found - wanted).max() / max(float(np.abs(wanted).max()), 1e-30))


def of_deviation(worst: float, tolerance: float) -> Measured:
    """Return a deviation with its limit."""
    return Measured(
        f"deviates by {worst:.1e}",
        "ok" if worst <= tolerance else "failed",
        f"{tolerance:.0e} of the largest value",
        worst / tolerance,
        "of what is allowed",
    )


def gradients_of_steps() -> FloatArray:
    """Draw the gradients of a few steps, (UPDATE_STEPS, ELEMENTS) float32."""
    return np.random.default_rng(5).standard_normal((UPDATE_STEPS, ELEMENTS)).astype(np.float32)


def adam_in_float64(config: OptimizerConfig, weights: FloatArray, *, bias_correction: bool) -> Any:
    """Return the weights after UPDATE_STEPS steps (Loshchilov & Hutter 2019, arXiv 1711.05101, alg. 2)."""
    (beta1, beta2), w = config.betas, weights.astype(np.float64)
    m, v = np.zeros_like(w), np.zeros_like(w)
    for step, gradient in enumerate(gradients_of_steps().astype(np.float64), start=1):
        m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2
        first, second = (1 - beta1**step, 1 - beta2**step) if bias_correction else (1.0, 1.0)
        w = w - config.learning_rate * (m / first / (np.sqrt(v / second) + config.epsilon) + config.weight_decay * w)
    return w


def settings() -> tuple[OptimizerConfig, FloatArray]:
    """Return the settings and the weights with which updates begin."""
    config = OptimizerConfig(learning_rate=RATE, weight_decay=0.1, epsilon=1e-6)
    return config, np.random.default_rng(6).standard_normal(ELEMENTS).astype(np.float32)


def compiled_adamw() -> Measured:
    """Compare the compiled AdamW with float64."""
    if library.for_updates() is None:
        return left_out("no compiled operations are in use here")
    config, weights = settings()
    wanted = adam_in_float64(config, weights, bias_correction=True)
    optimizer = OPTIMIZERS["adamw"](config, (Span("unet.w", (ELEMENTS // 64, 64), 0, ELEMENTS),), 0, ELEMENTS)
    for step, gradient in enumerate(gradients_of_steps(), start=1):
        optimizer.update_(weights, FlatArrays([gradient]), step, config.learning_rate, 1.0)
    return of_deviation(deviation(weights, wanted), UPDATE_TOLERANCE)


class Update(nn.Cell):
    """Makes one step of MindSpore's fused AdamWeightDecay in place."""

    def __init__(self, config: OptimizerConfig, weights: FloatArray) -> None:
        super().__init__()
        self.update = ops.AdamWeightDecay()
        self.weights = Parameter(Tensor(weights), name="weights")
        self.m = Parameter(Tensor(np.zeros_like(weights)), name="m")
        self.v = Parameter(Tensor(np.zeros_like(weights)), name="v")
        beta1, beta2 = config.betas
        self.numbers = (config.learning_rate, beta1, beta2, config.epsilon, config.weight_decay)

    def construct(self, gradient: Tensor) -> Tensor:
        rate, beta1, beta2, epsilon, decay = self.numbers
        self.update(self.weights, self.m, self.v, rate, beta1, beta2, epsilon, decay, gradient)
        return gradient[0]


def adam_weight_decay() -> Measured:
    """Compare MindSpore's fused AdamWeightDecay, which has no bias correction, with float64."""
    config, weights = settings()
    wanted = adam_in_float64(config, weights, bias_correction=False)
    update = Update(config, weights)
    for gradient in gradients_of_steps():
        update(Tensor(gradient))
    return of_deviation(deviation(to_host(update.weights), wanted), UPDATE_TOLERANCE)
