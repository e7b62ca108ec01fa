"""AdamW and the learning-rate schedule, on ranges of the flat parameter space in host memory."""

import math
from collections.abc import Sequence

import numpy as np

from vpred_train.config import OptimizerConfig
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.models.networks import Span

BLOCK_ELEMENTS = 1 << 15  # five float32 blocks of this size stay in a core's L2 cache


def learning_rate(config: OptimizerConfig, samples_seen: int, total_samples: int) -> float:
    """Linear warm-up from 0, then half a cosine to `final_learning_rate` (Loshchilov & Hutter 2017, eq. 5)."""
    if samples_seen < config.warmup_samples:
        return config.learning_rate * samples_seen / config.warmup_samples
    progress = (samples_seen - config.warmup_samples) / (total_samples - config.warmup_samples)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + 0.5 * span * (1 + math.cos(math.pi * progress))


def clip_factor(grad_norm: float, max_grad_norm: float) -> float:
    """The factor that brings the global norm down to `max_grad_norm` (Pascanu et al. 2013, alg. 1); 1 if below."""
    return min(1.0, max_grad_norm / (grad_norm + 1e-6))


class AdamW:
    """Adam with bias correction and decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101, alg. 2).

    `m` and `v` are (size,) float32 in the order of `spans`; spans that do not decay are left out of the decay.
    """

    def __init__(self, config: OptimizerConfig, spans: Sequence[Span]) -> None:
        self.config = config
        self.spans = spans
        self.m = np.zeros(spans[-1].stop, np.float32)
        self.v = np.zeros(spans[-1].stop, np.float32)

    def update_(
        self,
        weights: FloatArray,
        gradient: Sequence[FloatArray],
        step: int,
        learning_rate: float,
        scale: float,
    ) -> None:
        """One step in place on `weights` (size,). `gradient` has one 1-D array for each span and is multiplied by
        `scale` (clipping); `step` counts from 1.
        """
        config = self.config
        beta1, beta2 = np.float32(config.beta1), np.float32(config.beta2)
        step_size = np.float32(learning_rate / (1 - config.beta1**step))
        root_correction = np.float32(1 / math.sqrt(1 - config.beta2**step))
        for span, whole in zip(self.spans, gradient, strict=True):
            keep = np.float32(1 - learning_rate * config.weight_decay) if span.decays else None
            for start in range(span.start, span.stop, BLOCK_ELEMENTS):
                block = slice(start, min(start + BLOCK_ELEMENTS, span.stop))
                g = whole[block.start - span.start : block.stop - span.start] * np.float32(scale)
                m, v, w = self.m[block], self.v[block], weights[block]
                m *= beta1
                m += (1 - beta1) * g
                v *= beta2
                v += (1 - beta2) * (g * g)
                denominator = np.sqrt(v)
                denominator *= root_correction
                denominator += np.float32(config.epsilon)
                if keep is not None:
                    w *= keep
                w -= step_size * (m / denominator)
