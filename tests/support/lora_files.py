"""Factors of LoRA for the narrow model, and the smallest file that holds some."""

from typing import Any

import numpy as np

from support.weights_files import MODEL
from vpred_train.weights.lora.factors import Factors, Target, attention_targets, linear_targets

RANK = 4
Adapted = dict[Target, Factors]


def random_factors(alpha: float = RANK, packed_text: bool = True) -> Adapted:
    """Of all attention; the text encoder's projection as one, or as three with their own `down`."""
    rng = np.random.default_rng(7)
    shapes = attention_targets(MODEL)
    if not packed_text:
        apart = {target: shape for target, shape in linear_targets(MODEL).items() if target.part}
        shapes = {target: shape for target, shape in shapes.items() if "in_proj" not in target.weight} | apart

    def normal(*shape: int) -> Any:
        return rng.standard_normal(shape, np.float32)

    return {
        target: Factors(normal(RANK, inputs), normal(outputs, RANK), alpha)
        for target, (outputs, inputs) in shapes.items()
    }


FACTORS, APART = random_factors(), random_factors(packed_text=False)


def assert_same(found: Adapted, expected: Adapted) -> None:
    assert set(found) == set(expected)
    for target, each in expected.items():
        np.testing.assert_array_equal(found[target].down, each.down, strict=True)
        np.testing.assert_array_equal(found[target].up, each.up, strict=True)
        assert found[target].alpha == each.alpha


def zeros(*shape: int) -> Any:
    return np.zeros(shape, np.float32)


TO_Q = "model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
GOOD = {f"{TO_Q}.lora_down.weight": zeros(4, 32), f"{TO_Q}.lora_up.weight": zeros(32, 4)}
