"""Counted operations against torch's counter (golden/make_flops.py) and a sum by hand."""

from typing import Any

import numpy as np
import pytest

from support import GOLDEN
from vpred_train.config.train import TrainConfig
from vpred_train.estimates.flops import Flops, Tally, flops_per_image
from vpred_train.weights.layouts.tensor_shapes import stability_shapes

GOLDEN = np.load(GOLDEN / "flops.npz")
# UNet and text width of make_unet.py's SMALL.
SMALL = {
    "unet": {
        "model_channels": 32,
        "channel_multipliers": [1, 2, 2],
        "attention_levels": [0, 1],
        "head_channels": 16,
        "context_channels": 24,
        "norm_groups": 16,
    },
    "text_encoder": {"width": 24, "heads": 1, "layers": 1, "context_length": 7},
    "vae": {"channels": 32, "channel_multipliers": [1]},
}
GIVEN = {"pretrained": {"path": "."}}


def config(model: dict[str, Any], resolution: int, **keys: Any) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "total_samples": 64,
            "global_batch": 16,
            "data": {"path": ".", "resolution": resolution},
            "model": model,
            "optimizer": {"learning_rate": 1e-3},
            "checkpoint": {"every_samples": 16},
            **keys,
        }
    )


def golden(name: str) -> Flops:
    return Flops(*map(int, GOLDEN[name]))


def test_stable_diffusion_at_full_size() -> None:
    found = flops_per_image(config({}, 512, **GIVEN))
    assert found == {name: golden(f"sd2_{key}") for name, key in (
        ("vae", "vae_512"), ("text_encoder", "text_23"), ("unet", "whole_64")
    )}  # fmt: skip
    assert found["unet"].forward == 804_257_464_320
    with_lora = flops_per_image(config({}, 512, **GIVEN, lora={"rank": 4}))
    assert with_lora == {**found, "unet": golden("sd2_lora_64")}


@pytest.mark.parametrize(
    ("mode", "keys"),
    [
        ("whole", GIVEN),
        ("text", {**GIVEN, "trainable": ["unet", "text_encoder"]}),
        ("text_only", {**GIVEN, "trainable": ["text_encoder"]}),
        ("lora", {**GIVEN, "lora": {"rank": 4}}),
    ],
)
def test_what_learns_decides_the_backward_pass(mode: str, keys: dict[str, Any]) -> None:
    """Sides 9, 5 and 3: odd ones are halved upwards."""
    assert flops_per_image(config(SMALL, 9, **keys))["unet"] == golden(f"small_{mode}_9")


def test_a_text_encoder_that_learns() -> None:
    model = {"text_encoder": {"layers": 2}}
    found = flops_per_image(config(model, 8, **GIVEN, trainable=["unet", "text_encoder"]))
    assert found["text_encoder"] == golden("sd2_text_2_learning")


def test_the_smallest_network_by_hand() -> None:
    """One level of 8 channels at 4 x 4 pixels, no attention but in the middle; 3 tokens of 8; a text layer of 8."""
    unet = {
        "in_channels": 3,
        "model_channels": 8,
        "channel_multipliers": [1],
        "res_blocks": 1,
        "attention_levels": [],
        "head_channels": 8,
        "context_channels": 8,
        "norm_groups": 4,
    }
    model = {
        "vae": None,
        "unet": unet,
        "text_encoder": {"width": 8, "heads": 1, "layers": 1, "context_length": 3},
    }
    found = flops_per_image(config(model, 4, trainable=["unet", "text_encoder"]))
    p = 16  # pixels
    time = 8 * 32 + 32 * 32
    kernel = 9 * p
    shift = 32 * 8  # each block's, of the time embedding
    plain_block = shift + 2 * kernel * 8 * 8
    merging_block = shift + kernel * (16 * 8 + 8 * 8) + p * 16 * 8
    self_attention = 4 * p * 8 * 8 + 2 * p * p * 8
    text_attention = 2 * p * 8 * 8 + 2 * 3 * 8 * 8 + 2 * p * 3 * 8
    transformer = 2 * p * 8 * 8 + self_attention + text_attention + p * 8 * 64 + p * 32 * 8
    ends = 2 * kernel * 3 * 8
    multiply_adds = time + ends + 3 * plain_block + transformer + 2 * merging_block
    # Neither the noised image nor the timestep's embedding needs a gradient.
    without = kernel * 3 * 8 + 8 * 32
    assert found["unet"] == Flops(2 * multiply_adds, 2 * (2 * multiply_adds - without))
    text = 3 * (8 * 24 + 8 * 8 + 8 * 32 + 32 * 8) + 2 * 3 * 3 * 8
    assert found["text_encoder"] == Flops(2 * text, 4 * text)


def test_no_matrix_is_forgotten_or_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """But tables of embeddings and the autoencoder's decoder, which training does not run."""
    seen: list[str] = []
    count = Tally.layer

    def noted(self: Tally, name: str, places: int, x: bool, suffix: str = ".weight") -> bool:
        seen.append(f"{self.prefix}{name}{suffix}")
        return count(self, name, places, x, suffix)

    monkeypatch.setattr(Tally, "layer", noted)
    given = config({}, 512, **GIVEN)
    flops_per_image(given)
    unused = ("embedding", "first_stage_model.decoder", "first_stage_model.post_quant_conv")
    matrices = [name for name, shape in stability_shapes(given.model).items() if len(shape) > 1]
    assert sorted(seen) == sorted(name for name in matrices if not any(word in name for word in unused))


def test_micro_batches_and_recomputation_do_the_same_useful_work() -> None:
    plain = flops_per_image(config(SMALL, 9, **GIVEN))
    assert flops_per_image(config(SMALL, 9, **GIVEN, gradient_accumulation_steps=4, recompute=True)) == plain
