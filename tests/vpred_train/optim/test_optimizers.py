"""Optimisers against torch's (golden/make_optimizers.py) and float64 loops written from the papers; on ranges too."""

import numpy as np
import pytest

from support import GOLDEN
from vpred_train.config.optimizer import OptimizerConfig
from vpred_train.distributed.flat_arrays import BLOCK_ELEMENTS, FlatArrays
from vpred_train.distributed.spans import Span
from vpred_train.optim.optimizers import OPTIMIZERS, clip_factor

GOLDEN = np.load(GOLDEN / "optimizers.npz")
GOLDEN_SPANS = (Span("unet.weight", (9, 21), 0, 189), Span("unet.bias", (40,), 189, 229))
SPANS = (
    Span("unet.conv.weight", (BLOCK_ELEMENTS + 7, 1), 0, BLOCK_ELEMENTS + 7),
    Span("unet.conv.bias", (5,), BLOCK_ELEMENTS + 7, BLOCK_ELEMENTS + 12),
    Span("text_encoder.token_embedding.weight", (4, 2), BLOCK_ELEMENTS + 12, BLOCK_ELEMENTS + 20),
)
SIZE = SPANS[-1].stop
CONFIGS = {
    "adamw": OptimizerConfig(learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.98)),
    "adam_weight_decay": OptimizerConfig(
        name="adam_weight_decay", learning_rate=1e-2, weight_decay=0.1, betas=(0.9, 0.98), epsilon=1e-6
    ),
    "sgd": OptimizerConfig(name="sgd", learning_rate=1e-2, weight_decay=0.1, momentum=0.9),
}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fifty_steps_equal_torch(name: str, operations: str) -> None:
    optimizer = OPTIMIZERS[name](CONFIGS[name], GOLDEN_SPANS, 0, 229)
    weights = GOLDEN["start"].copy()
    for step, (gradient, rate) in enumerate(zip(GOLDEN["gradients"], GOLDEN["learning_rates"], strict=True), start=1):
        optimizer.update_(weights, FlatArrays([gradient]), step, float(rate), 1.0)
    np.testing.assert_allclose(weights, GOLDEN[name], rtol=0, atol=1e-6)


def test_adam_weight_decay_equals_its_published_formula(operations: str) -> None:
    optimizer = OPTIMIZERS["adam_weight_decay"](CONFIGS["adam_weight_decay"], SPANS, 0, SIZE)
    rng = np.random.default_rng(0)
    weights = rng.normal(0, 0.1, SIZE).astype(np.float32)
    w, m, v = weights.astype(np.float64), np.zeros(SIZE), np.zeros(SIZE)
    decay = np.where(np.arange(SIZE) < SPANS[0].stop, 0.1, 0.0)  # matrices only
    for step in range(1, 51):
        gradient = rng.standard_normal(SIZE).astype(np.float32)
        optimizer.update_(weights, FlatArrays([gradient]), step, 1e-2, 0.5)
        g = 0.5 * gradient.astype(np.float64)
        m = 0.9 * m + 0.1 * g
        v = 0.98 * v + 0.02 * g * g
        w = w - 1e-2 * (m / (np.sqrt(v) + 1e-6) + decay * w)
    np.testing.assert_allclose(weights, w, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("cut", [0, 100, SPANS[0].stop, SPANS[1].start + 2, SIZE])
def test_two_ranges_make_the_whole_bit_for_bit(name: str, cut: int, operations: str) -> None:
    """Also when the gradient lies in one array for each parameter."""
    rng = np.random.default_rng(1)
    start = rng.normal(0, 0.1, SIZE).astype(np.float32)
    whole, parts = start.copy(), start.copy()
    one = OPTIMIZERS[name](CONFIGS[name], SPANS, 0, SIZE)
    ranges = [
        (slice(first, end), OPTIMIZERS[name](CONFIGS[name], SPANS, first, end))
        for first, end in ((0, cut), (cut, SIZE))
    ]
    for step in range(1, 4):
        gradient = rng.standard_normal(SIZE).astype(np.float32)
        one.update_(whole, FlatArrays([gradient[span.start : span.stop] for span in SPANS]), step, 1e-2, 0.3)
        for own, optimizer in ranges:
            optimizer.update_(parts[own], FlatArrays([gradient[own]]), step, 1e-2, 0.3)
    assert (whole != start).all()
    np.testing.assert_array_equal(parts, whole)
    for moment, values in one.moments.items():
        assert values.any()
        np.testing.assert_array_equal(np.concatenate([each.moments[moment] for _, each in ranges]), values)


def test_only_matrices_decay() -> None:
    """Neither biases and norms, which are 1-D, nor embeddings."""
    assert [span.decays for span in SPANS] == [True, False, False]


def test_sgd_without_momentum_remembers_nothing() -> None:
    optimizer = OPTIMIZERS["sgd"](
        OptimizerConfig(name="sgd", learning_rate=1.0, weight_decay=0.5), GOLDEN_SPANS, 180, 200
    )
    weights = np.full(20, 2, np.float32)
    optimizer.update_(weights, FlatArrays([np.full(20, 4, np.float32)]), 1, 0.25, 0.5)
    assert optimizer.moments == {}
    assert weights.tolist() == [2 - 0.25 * (2 + 0.5 * 2)] * 9 + [2 - 0.25 * 2] * 11


def test_clipping_brings_the_norm_down_and_leaves_small_ones() -> None:
    assert clip_factor(0.5, 1.0) == 1.0
    assert 4.0 * clip_factor(4.0, 1.0) == pytest.approx(1.0, rel=1e-5)
