"""MindSpore is set up once for the session, as a rank would do it; small documents for tests."""

from typing import Any

import pytest

from vpred_train import runtime
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.kernels import library


@pytest.fixture(scope="session", autouse=True)
def mindspore_on_cpu() -> None:
    runtime.start_single()


@pytest.fixture(params=["compiled", "plain"])
def operations(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Networks that are built in the test use these operations."""
    kind: str = request.param
    if kind == "plain":
        monkeypatch.setattr(library, "_loaded", None)
    elif library.loaded() is None:
        pytest.skip(f"no compiled operations: {library.BUILD_COMMAND} says why")
    return kind


MODEL: dict[str, Any] = {
    "vae": None,
    "space_to_depth": 2,
    "unet": {
        "in_channels": 12,
        "model_channels": 8,
        "channel_multipliers": [1, 2],
        "res_blocks": 1,
        "attention_levels": [1],
        "head_channels": 8,
        "context_channels": 16,
        "norm_groups": 4,
    },
    "text_encoder": {"width": 16, "heads": 2, "layers": 1, "context_length": 8},
}


DOCUMENT: dict[str, Any] = {
    "total_samples": 80,
    "global_batch": 4,
    "trainable": ["unet", "text_encoder"],
    "data": {"path": ".", "resolution": 8},
    "model": MODEL,
    "optimizer": {"learning_rate": 1e-3},
    "schedule": {"warmup_samples": 8},
    "ema": {"profiles": ["constant", "mindone", "power"]},
    "checkpoint": {"every_samples": 40},
}


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig.model_validate(MODEL)


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    return TrainConfig.model_validate(DOCUMENT)
