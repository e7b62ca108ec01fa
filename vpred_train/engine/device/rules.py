"""Implements the optimisers as parts of the step's graph, each with the numbers that it takes from the host.

The formulas are those of `optim.optimizers`. A bucket's update returns its new weights, and not what `Assign` returns:
MindSpore would then copy the old weights first. All operations are elementary: the result of MindSpore's fused
`AdamWeightDecay`, which updates in place, can be read before the update without an error.
"""

import math
from typing import Any, Protocol

import numpy as np
from mindspore import Tensor, nn, ops

from vpred_train.config.optimizer import OptimizerConfig

Buckets = tuple[Tensor, ...]  # one flat tensor for each bucket

adam_ = ops.MultitypeFuncGraph("adam")
momentum_ = ops.MultitypeFuncGraph("momentum")
descent_ = ops.MultitypeFuncGraph("descent")
assign, select, sqrt = ops.Assign(), ops.Select(), ops.Sqrt()


@adam_.register(*["Tensor"] * 14)
def _adam(finite, factor, beta1, share1, beta2, share2, step_size, root, epsilon, keep, gradient, weights, m, v):  # type: ignore[no-untyped-def]  # fmt: skip
    """Update one bucket in place and return its weights; change nothing unless `finite`."""
    g = gradient * factor
    new_m = beta1 * m + share1 * g
    new_v = beta2 * v + share2 * (g * g)
    new = select(finite, keep * weights - step_size * (new_m / (sqrt(new_v) * root + epsilon)), weights)
    assign(m, select(finite, new_m, m))
    assign(v, select(finite, new_v, v))
    assign(weights, new)
    return new


@momentum_.register(*["Tensor"] * 8)
def _momentum(finite, factor, rate, momentum, decay, gradient, weights, u):  # type: ignore[no-untyped-def]
    """Do as `_adam`."""
    new_u = momentum * u + (gradient * factor + decay * weights)
    new = select(finite, weights - rate * new_u, weights)
    assign(u, select(finite, new_u, u))
    assign(weights, new)
    return new


@descent_.register(*["Tensor"] * 6)
def _descent(finite, factor, rate, decay, gradient, weights):  # type: ignore[no-untyped-def]
    """Do as `_adam`."""
    new = select(finite, weights - rate * (gradient * factor + decay * weights), weights)
    assign(weights, new)
    return new


class Rule(Protocol):
    """Updates buckets that all decay, or of which none does. Called in a graph; built as `(optimizer)`.

    without_decay: replaces the last of the numbers where nothing decays
    """

    without_decay: float

    def __init__(self, optimizer: OptimizerConfig) -> None: ...

    @staticmethod
    def numbers(optimizer: OptimizerConfig, update: int, learning_rate: float) -> tuple[float, ...]:
        """Return the numbers that the graph takes at an update, which count from 1."""

    def __call__(
        self, finite: Tensor, factor: Tensor, numbers: Buckets, gradients: Buckets, weights: Buckets, moments: Any
    ) -> Buckets:
        """Assign the new weights and moments if `finite` (1,) bool, and return the weights.

        factor: (1,) float32, multiplies the gradients
        numbers: each (1,) float32
        moments: buckets for each moment
        """


class Adam(nn.Cell):
    """Implements AdamW and AdamWeightDecay (Loshchilov & Hutter 2019, arXiv 1711.05101, alg. 2)."""

    without_decay = 1.0

    def __init__(self, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.map = ops.HyperMap()

    @staticmethod
    def numbers(optimizer: OptimizerConfig, update: int, learning_rate: float) -> tuple[float, ...]:
        """Return beta1, 1 - beta1, beta2, 1 - beta2, step size, 1 / correction of the root, epsilon, kept share."""
        betas = [np.float32(beta) for beta in optimizer.betas]
        corrected = optimizer.name == "adamw"
        first, second = (1 - beta**update if corrected else 1.0 for beta in optimizer.betas)
        # 1 - beta in float32, as the host engine's compiled operation computes it.
        moments = [float(each) for beta in betas for each in (beta, 1 - beta)]
        keep = 1 - learning_rate * optimizer.weight_decay
        return (*moments, learning_rate / first, 1 / math.sqrt(second), optimizer.epsilon, keep)

    def construct(
        self, finite: Tensor, factor: Tensor, numbers: Buckets, gradients: Buckets, weights: Buckets, moments: Any
    ) -> Buckets:
        beta1, share1, beta2, share2, step_size, root_correction, epsilon, keep = numbers
        update = ops.partial(
            adam_, finite, factor, beta1, share1, beta2, share2, step_size, root_correction, epsilon, keep
        )
        return self.map(update, gradients, weights, moments[0], moments[1])


class Sgd(nn.Cell):
    """Implements SGD with and without momentum (torch.optim.SGD)."""

    without_decay = 0.0

    def __init__(self, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.map, self.has_momentum = ops.HyperMap(), bool(optimizer.moment_names)

    @staticmethod
    def numbers(optimizer: OptimizerConfig, update: int, learning_rate: float) -> tuple[float, ...]:
        """Return learning rate, momentum and weight decay."""
        return (learning_rate, optimizer.momentum, optimizer.weight_decay)

    def construct(
        self, finite: Tensor, factor: Tensor, numbers: Buckets, gradients: Buckets, weights: Buckets, moments: Any
    ) -> Buckets:
        rate, momentum, decay = numbers
        if self.has_momentum:
            return self.map(
                ops.partial(momentum_, finite, factor, rate, momentum, decay), gradients, weights, moments[0]
            )
        return self.map(ops.partial(descent_, finite, factor, rate, decay), gradients, weights)


RULES: dict[str, type[Rule]] = {"adamw": Adam, "adam_weight_decay": Adam, "sgd": Sgd}
