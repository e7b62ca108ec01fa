"""Ten training steps against torch and diffusers (tests/golden/make_training.py): same weights, batches and draws."""

import json

import numpy as np
import pytest
from mindspore import Tensor

from data import Batch
from golden.seeded import weights
from support import GOLDEN
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.objective import Draws
from vpred_train.engine.state import TrainState
from vpred_train.engine.step import TrainStep
from vpred_train.models.networks import Networks

FOLDER = GOLDEN
GOLDEN = np.load(FOLDER / "training.npz")
CAPTIONS = json.loads((FOLDER / "captions.json").read_text(encoding="utf-8"))
STEPS, GLOBAL_BATCH = GOLDEN["timesteps"].shape
CONFIG = TrainConfig.model_validate(
    {
        "total_samples": STEPS * GLOBAL_BATCH,
        "global_batch": GLOBAL_BATCH,
        "trainable": ["unet", "text_encoder"],
        "data": {"path": ".", "resolution": GOLDEN["images"].shape[-1]},
        "model": {
            "vae": None,
            "unet": {
                "in_channels": 3,
                "model_channels": 32,
                "channel_multipliers": [1, 2],
                "attention_levels": [0],
                "head_channels": 16,
                "context_channels": 24,
                "norm_groups": 16,
            },
            "text_encoder": {"width": 24, "heads": 2, "layers": 1},
        },
        "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.99], "epsilon": 1e-6, "weight_decay": 0.1},
        "schedule": {"name": "constant", "warmup_steps": 3},
        "ema": {"decay": 0.3},
        "checkpoint": {"every_samples": 40},
    }
)


def batch(step: int) -> Batch:
    return Batch(
        arrays={"images": GOLDEN["images"][step]},
        captions=tuple(CAPTIONS[number] for number in GOLDEN["captions"][step]),
        epochs=np.zeros(GLOBAL_BATCH, np.int64),
        sample_ids=np.arange(GLOBAL_BATCH),
        places=np.arange(GLOBAL_BATCH),
        samples_seen=(step + 1) * GLOBAL_BATCH,
        wait_s=0.0,
    )


def draws(data: Batch, shape: tuple[int, ...]) -> Draws:
    """The golden file's in place of the keyed ones: the only thing replaced."""
    step = data.samples_seen // GLOBAL_BATCH - 1
    noise = GOLDEN["noise"][step]
    assert noise.shape == (GLOBAL_BATCH, *shape)
    return Draws(GOLDEN["timesteps"][step], noise, noise)


def test_ten_steps_equal_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs is float32 here and float64 there."""
    networks = Networks(CONFIG.model, 0)
    space = FlatSpace(networks, CONFIG.trainable)
    assert sorted(span.name for span in space.spans) == GOLDEN["names"].tolist()
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    state = TrainState(CONFIG, space, SingleProcess())
    step = TrainStep(CONFIG, networks, state, SingleProcess())
    monkeypatch.setattr(step.objective, "draw", draws)
    clipped = GOLDEN["norms"] > CONFIG.optimizer.max_grad_norm
    assert clipped.any() and not clipped.all()
    results = [step(batch(number)) for number in range(STEPS)]
    np.testing.assert_allclose([result.loss for result in results], GOLDEN["losses"], rtol=2e-6)
    np.testing.assert_allclose([result.grad_norm for result in results], GOLDEN["norms"], rtol=5e-5)
    for kind, values in (("weights", state.weights), ("average", state.averages["constant"])):
        named = space.views(values)
        names, lengths = GOLDEN["names"].tolist(), GOLDEN[f"{kind}_length"]
        ways = [named[name].astype(np.float64) - weights(name, named[name].shape) for name in names]
        along = [np.sum(way * weights(f"direction.{name}", way.shape)) for name, way in zip(names, ways, strict=True)]
        np.testing.assert_allclose([np.linalg.norm(way) for way in ways], lengths, rtol=1e-4)
        assert np.all(np.abs(along - GOLDEN[f"{kind}_along"]) <= 3e-4 * lengths)
        np.testing.assert_allclose(named["unet.out.2.weight"], GOLDEN[f"{kind}_out"], atol=3e-6)
