"""MindSpore is set up once for the session, as a rank would do it; small documents for tests."""

import pytest

from support.small_training import DOCUMENT, MODEL
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


@pytest.fixture(scope="session")
def model_config() -> ModelConfig:
    return ModelConfig.model_validate(MODEL)


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    return TrainConfig.model_validate(DOCUMENT)
