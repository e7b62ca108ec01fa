"""A small UNet of SD2's structure against diffusers (tests/golden/make_unet.py)."""

import numpy as np
from mindspore import Tensor

from golden.seeded import weights
from support import GOLDEN
from vpred_train.config.model import UNetConfig
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.models.unet import UNet

CONFIG = UNetConfig(
    in_channels=4,
    model_channels=32,
    channel_multipliers=(1, 2, 2),
    res_blocks=2,
    attention_levels=(0, 1),
    head_channels=16,
    context_channels=24,
    norm_groups=16,
)


def test_prediction_and_names_equal_diffusers(operations: str) -> None:
    golden = np.load(GOLDEN / "unet.npz")
    unet = UNet(CONFIG, np.random.default_rng(0))
    space = FlatSpace(unet)
    assert sorted(span.name for span in space.spans) == golden["names"].tolist()
    for parameter, span in zip(space.parameters, space.spans, strict=True):
        parameter.set_data(Tensor(weights(span.name, span.shape)))
    found = unet(*(Tensor(golden[name]) for name in ("z", "timesteps", "context"))).asnumpy()
    expected = golden["prediction"]
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
