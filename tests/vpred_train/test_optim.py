"""AdamW, schedules and EMA against float64 loops written from the papers."""

import math

import numpy as np
import pytest

from vpred_train.config import EmaConfig, OptimizerConfig
from vpred_train.ema import ema_decay, ema_update_
from vpred_train.models.networks import Span
from vpred_train.optim import BLOCK_ELEMENTS, AdamW, clip_factor, learning_rate

SPANS = (
    Span("unet.conv.weight", (BLOCK_ELEMENTS + 7, 1), 0, BLOCK_ELEMENTS + 7),
    Span("unet.conv.bias", (5,), BLOCK_ELEMENTS + 7, BLOCK_ELEMENTS + 12),
    Span("text_encoder.token_embedding.weight", (4, 2), BLOCK_ELEMENTS + 12, BLOCK_ELEMENTS + 20),
)


def test_adamw_equals_the_paper_over_fifty_steps() -> None:
    config = OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, beta1=0.9, beta2=0.99)
    rng = np.random.default_rng(0)
    size = SPANS[-1].stop
    weights = rng.normal(0, 0.1, size).astype(np.float32)
    optimizer = AdamW(config, SPANS)
    w, m, v = weights.astype(np.float64), np.zeros(size), np.zeros(size)
    decay = np.zeros(size)
    decay[: SPANS[0].stop] = 0.1  # matrices only
    for step in range(1, 51):
        gradient = rng.standard_normal(size).astype(np.float32)
        optimizer.update_(weights, [gradient[span.start : span.stop] for span in SPANS], step, 1e-2, 0.5)
        g = 0.5 * gradient.astype(np.float64)
        m = 0.9 * m + 0.1 * g
        v = 0.99 * v + 0.01 * g * g
        w = w * (1 - 1e-2 * decay)
        w -= 1e-2 * (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.99**step)) + 1e-8)
    np.testing.assert_allclose(weights, w, rtol=0, atol=1e-6)


def test_only_matrices_decay() -> None:
    assert [span.decays for span in SPANS] == [True, False, False]


def test_learning_rate_over_a_run() -> None:
    config = OptimizerConfig(learning_rate=2.0, final_learning_rate=0.5, warmup_samples=100)
    assert learning_rate(config, 50, 1100) == 1.0
    assert learning_rate(config, 100, 1100) == 2.0
    assert learning_rate(config, 600, 1100) == pytest.approx(1.25)
    assert learning_rate(config, 350, 1100) == pytest.approx(1.25 + 0.75 * math.cos(math.pi / 4))
    assert learning_rate(config, 1100, 1100) == 0.5
    assert learning_rate(OptimizerConfig(learning_rate=1.0), 0, 10) == 1.0


def test_clipping_brings_the_norm_down_and_leaves_small_ones() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert 4.0 * clip_factor(4.0, 1.0) == pytest.approx(1.0, rel=1e-5)


def test_ema_equals_the_recursion() -> None:
    config = EmaConfig(decay=0.9)
    assert [ema_decay(config, n) for n in (0, 8, 1000)] == [0.1, 0.5, 0.9]
    rng = np.random.default_rng(1)
    average = rng.standard_normal(BLOCK_ELEMENTS + 3).astype(np.float32)
    expected = average.astype(np.float64)
    for _ in range(20):
        weights = rng.standard_normal(average.size).astype(np.float32)
        ema_update_(average, weights, 0.9)
        expected = 0.9 * expected + 0.1 * weights
    np.testing.assert_allclose(average, expected, atol=1e-6)
