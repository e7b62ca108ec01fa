"""The learning rate against closed forms at single points."""

import math
from typing import Any

import pytest

from vpred_train.config.train import TrainConfig
from vpred_train.optim.learning_rate import learning_rate


def config(optimizer: dict[str, Any], schedule: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "total_samples": 1100,
            "global_batch": 10,
            "trainable": ["unet", "text_encoder"],
            "data": {"path": ".", "resolution": 64},
            "model": {"vae": None, "space_to_depth": 8, "unet": {"in_channels": 192}},
            "optimizer": optimizer,
            "schedule": schedule,
            "checkpoint": {"every_samples": 100},
        }
    )


POINTS: dict[str, tuple[dict[str, Any], dict[int, float]]] = {
    "constant": ({"name": "constant"}, {100: 2.0, 600: 2.0, 1100: 2.0}),
    "cosine": (
        {"final_learning_rate": 0.5},
        {100: 2.0, 350: 1.25 + 0.75 * math.cos(math.pi / 4), 600: 1.25, 1100: 0.5},
    ),
    "linear": ({"name": "polynomial", "final_learning_rate": 0.5}, {100: 2.0, 600: 1.25, 1100: 0.5}),
    "cubic": ({"name": "polynomial", "power": 3}, {100: 2.0, 600: 2.0 / 8, 850: 2.0 / 64, 1100: 0.0}),
    # The step that ends at the milestone is the last with the old rate, as with torch's MultiStepLR.
    "multi_step": (
        {"name": "multi_step", "milestones_samples": [300, 700], "factor": 0.5},
        {100: 2.0, 300: 2.0, 310: 1.0, 700: 1.0, 710: 0.5, 1100: 0.5},
    ),
}


@pytest.mark.parametrize("name", POINTS)
def test_after_a_warm_up_of_100_samples(name: str) -> None:
    schedule, points = POINTS[name]
    setup = config({"learning_rate": 2.0}, {**schedule, "warmup_samples": 100})
    for samples_seen, expected in {0: 0.0, 10: 0.2, 50: 1.0, **points}.items():
        assert learning_rate(setup, samples_seen) == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_without_a_warm_up_the_first_rate_is_the_peak() -> None:
    assert learning_rate(config({"learning_rate": 2.0}, {}), 0) == 2.0


@pytest.mark.parametrize(
    ("in_samples", "in_steps"),
    [
        ({"warmup_samples": 70}, {"warmup_steps": 7}),
        ({"name": "multi_step", "milestones_samples": [30, 500]}, {"name": "multi_step", "milestones_steps": [3, 50]}),
    ],
)
def test_steps_and_samples_mean_the_same(in_samples: dict[str, Any], in_steps: dict[str, Any]) -> None:
    one, other = (config({"learning_rate": 2.0}, each) for each in (in_samples, in_steps))
    for samples_seen in range(0, 1101, 10):
        assert learning_rate(one, samples_seen) == learning_rate(other, samples_seen)


def test_scaling_with_the_batch_is_asked_for() -> None:
    schedule = {"final_learning_rate": 0.5, "warmup_samples": 100}
    plain, scaled = (config({"learning_rate": 2.0, **each}, schedule) for each in ({}, {"reference_batch": 40}))
    for samples_seen in (50, 100, 350, 1100):
        assert learning_rate(scaled, samples_seen) == pytest.approx(learning_rate(plain, samples_seen) / 4)
