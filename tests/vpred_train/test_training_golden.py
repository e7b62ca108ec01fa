"""Ten training steps against torch and diffusers (tests/golden/make_training.py): same weights, batches and draws."""

import json
from pathlib import Path

import numpy as np
import pytest
from mindspore import Tensor
from seeded import weights

from data import Batch
from vpred_train.collectives import SingleProcess
from vpred_train.config import TrainConfig
from vpred_train.diffusion.objective import Draws
from vpred_train.models.networks import FlatSpace, Networks
from vpred_train.state import TrainState
from vpred_train.step import TrainStep

FOLDER = Path(__file__).parents[1] / "golden"
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
                "channel_multipliers": [1, 2, 2],
                "attention_levels": [0, 1],
                "head_channels": 16,
                "context_channels": 24,
                "norm_groups": 16,
            },
            "text_encoder": {"width": 24, "heads": 2, "layers": 1},
        },
        "optimizer": {
            "learning_rate": 1e-3,
            "betas": [0.9, 0.99],
            "epsilon": 1e-6,
            "weight_decay": 0.1,
            "max_grad_norm": 1.5,
        },
        "schedule": {"name": "constant", "warmup_steps": 3},
        "ema": {"decay": 0.3},
        "checkpoint": {"every_samples": 40},
    }
)


def batch(step: int) -> Batch:
    return Batch(
        images=GOLDEN["images"][step],
        captions=tuple(CAPTIONS[number] for number in GOLDEN["captions"][step]),
        epochs=np.zeros(GLOBAL_BATCH, np.int64),
        sample_ids=np.arange(GLOBAL_BATCH),
        places=np.arange(GLOBAL_BATCH),
        samples_seen=(step + 1) * GLOBAL_BATCH,
        wait_s=0.0,
    )


def draws(data: Batch, shape: tuple[int, ...]) -> Draws:
    """The golden file's in place of the keyed ones: the one seam."""
    step = data.samples_seen // GLOBAL_BATCH - 1
    rows = data.places  # of a micro-batch
    noise = GOLDEN["noise"][step][rows]
    assert noise.shape[1:] == shape
    return Draws(GOLDEN["timesteps"][step][rows], noise, noise)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_ten_steps_equal_torchs(micro_batches: int, monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.model_copy(update={"gradient_accumulation_steps": micro_batches})
    networks = Networks(config.model, 0)
    space = FlatSpace(networks, config.trainable)
    assert sorted(span.name for span in space.spans) == GOLDEN["names"].tolist()
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    state = TrainState(config, space, SingleProcess())
    step = TrainStep(config, networks, state, SingleProcess())
    monkeypatch.setattr(step.objective, "draw", draws)
    results = [step(batch(number)) for number in range(STEPS)]
    norms = np.array([result.grad_norm for result in results])
    losses = np.array([result.loss for result in results])
    print("losses", np.abs(losses / GOLDEN["losses"] - 1).max(), "norms", np.abs(norms / GOLDEN["norms"] - 1).max())
    for kind, values in (("weights", state.weights), ("average", state.averages["constant"])):
        named = space.views(values)
        ways = {name: named[name].astype(np.float64) - weights(name, named[name].shape) for name in sorted(named)}
        length = np.array([np.linalg.norm(way) for way in ways.values()])
        along = np.array([np.sum(way * weights(f"direction.{name}", way.shape)) for name, way in ways.items()])
        for what, a, b in (("length", length, GOLDEN[f"{kind}_length"]), ("along", along, GOLDEN[f"{kind}_along"])):
            d = np.abs(a - b) / GOLDEN[f"{kind}_length"]
            order = np.argsort(d)[::-1][:5]
            print(kind, what, [(list(ways)[i], d[i], GOLDEN[f"{kind}_length"][i]) for i in order])
        print(np.abs(named["unet.out.2.weight"] - GOLDEN[f"{kind}_out"]).max())
