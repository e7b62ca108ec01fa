"""Implements optimisers on a range of the flat parameter space, in host memory."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.optimizer import OptimizerConfig
from vpred_train.distributed.flat_arrays import FlatArrays, blocks
from vpred_train.distributed.spans import Span
from vpred_train.kernels import library, update


def clip_factor(grad_norm: float, max_grad_norm: float) -> float:
    """Return the factor that reduces the global norm to `max_grad_norm` (Pascanu et al. 2013, alg. 1); 1 if below."""
    return min(1.0, max_grad_norm / (grad_norm + 1e-6))


class Optimizer(Protocol):
    """Updates the elements [start, stop) of the flat space of `spans`. Built as `(config, spans, start, stop)`.

    moments: name -> (stop - start,) float32; all that must be kept from step to step
    """

    moments: dict[str, FloatArray]

    def update_(self, weights: FloatArray, gradient: FlatArrays, step: int, learning_rate: float, scale: float) -> None:
        """Make one step in place on `weights`.

        weights, gradient: those of the range, (stop - start,) float32
        step: counts from 1
        scale: factor of the gradient (clipping)
        """


class AdamW:
    """Implements Adam with bias correction and decoupled weight decay.

    Source: Loshchilov & Hutter 2019, arXiv 1711.05101, alg. 2.
    """

    bias_correction = True

    def __init__(self, config: OptimizerConfig, spans: Sequence[Span], start: int, stop: int) -> None:
        self.config = config
        self.stretches = stretches(spans, start, stop)
        self.moments = fresh_moments(config, start, stop)

    def update_(self, weights: FloatArray, gradient: FlatArrays, step: int, learning_rate: float, scale: float) -> None:
        beta1, beta2 = self.config.betas
        corrections = (1 - beta1**step, math.sqrt(1 - beta2**step)) if self.bias_correction else (1.0, 1.0)
        step_size, root_correction = learning_rate / corrections[0], 1 / corrections[1]
        keep = 1 - learning_rate * self.config.weight_decay
        if library.for_updates():
            for first, end, decays in self.stretches:
                part = slice(first, end)
                update.adamw_(
                    weights[part],
                    gradient[part],
                    self.moments["adam_m"][part],
                    self.moments["adam_v"][part],
                    beta1=beta1,
                    beta2=beta2,
                    step_size=step_size,
                    root_correction=root_correction,
                    epsilon=self.config.epsilon,
                    keep=keep if decays else 1.0,
                    scale=scale,
                )
            return
        for block, decays in decaying_blocks(self.stretches):
            g = gradient[block] * np.float32(scale)
            m, v, w = self.moments["adam_m"][block], self.moments["adam_v"][block], weights[block]
            m *= np.float32(beta1)
            m += np.float32(1 - beta1) * g
            v *= np.float32(beta2)
            g *= g
            g *= np.float32(1 - beta2)
            v += g
            denominator = np.sqrt(v)
            denominator *= np.float32(root_correction)
            denominator += np.float32(self.config.epsilon)
            if decays:
                w *= np.float32(keep)
            np.divide(m, denominator, out=denominator)
            denominator *= np.float32(step_size)
            w -= denominator


class AdamWeightDecay(AdamW):
    """Implements MindSpore's nn.AdamWeightDecay, MindONE's "adamw". It is AdamW without bias correction.

    w <- w - lr (m / (sqrt(v) + epsilon) + weight_decay w)
    """

    bias_correction = False


class Sgd:
    """Implements SGD with momentum (torch.optim.SGD).

    u <- momentum u + g, w <- w - lr u, where g includes weight_decay w
    """

    def __init__(self, config: OptimizerConfig, spans: Sequence[Span], start: int, stop: int) -> None:
        self.config = config
        self.stretches = stretches(spans, start, stop)
        self.moments = fresh_moments(config, start, stop)

    def update_(self, weights: FloatArray, gradient: FlatArrays, step: int, learning_rate: float, scale: float) -> None:
        for block, decays in decaying_blocks(self.stretches):
            g, w = gradient[block] * np.float32(scale), weights[block]
            if decays:
                g += np.float32(self.config.weight_decay) * w
            for u in self.moments.values():
                u[block] *= np.float32(self.config.momentum)
                u[block] += g
                g = u[block]
            w -= np.float32(learning_rate) * g


def fresh_moments(config: OptimizerConfig, start: int, stop: int) -> dict[str, FloatArray]:
    """Make moments of zeros for the elements [start, stop)."""
    return {name: np.zeros(stop - start, np.float32) for name in config.moment_names}


def stretches(spans: Sequence[Span], start: int, stop: int) -> list[tuple[int, int, bool]]:
    """List (first, end, decays) of each span's part in [start, stop), counted from `start`."""
    parts = [(max(span.start, start) - start, min(span.stop, stop) - start, span.decays) for span in spans]
    return [part for part in parts if part[0] < part[1]]


def decaying_blocks(parts: Sequence[tuple[int, int, bool]]) -> Iterator[tuple[slice, bool]]:
    """Divide the stretches into blocks that fit the cache."""
    for first, end, decays in parts:
        for block in blocks(first, end):
            yield block, decays


OPTIMIZERS: dict[str, Callable[[OptimizerConfig, Sequence[Span], int, int], Optimizer]] = {
    "adamw": AdamW,
    "adam_weight_decay": AdamWeightDecay,
    "sgd": Sgd,
}
