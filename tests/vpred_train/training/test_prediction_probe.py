"""What a network predicts is told from its predictions, for networks whose predictions are known."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import DataConfig, open_source
from launcher.contract.config import ConfigError
from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import PretrainedConfig
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.engine.inputs import Online
from vpred_train.models.networks import Networks
from vpred_train.training import prediction_probe
from vpred_train.training.prediction_probe import Probe, measure, probe

SCHEDULE = make_schedule(DiffusionConfig())
LATENTS = np.random.default_rng(0).standard_normal((4, 3, 16, 16)).astype(np.float32)


def generators() -> list[np.random.Generator]:
    return [np.random.default_rng(index) for index in range(len(LATENTS))]


def denoiser(kind: Any, blur: float) -> Callable[[FloatArray, int, int], FloatArray]:
    """A network that knows the image up to a relative error of `blur`, and answers in terms of `kind`."""
    errors = itertools.count()

    def predict(z: FloatArray, t: int, index: int) -> FloatArray:
        error = np.random.default_rng(next(errors)).standard_normal(z.shape)
        x = LATENTS[index] + blur * error
        noise = (z - SCHEDULE.alpha[t] * x) / SCHEDULE.sigma[t]
        prediction: FloatArray = TARGETS[kind](x, noise, SCHEDULE.alpha[t], SCHEDULE.sigma[t])
        return prediction

    return predict


@pytest.mark.parametrize("kind", ["v", "eps", "x0"])
def test_a_denoiser_is_recognised(kind: Any) -> None:
    exact = measure(denoiser(kind, 0), LATENTS, generators(), SCHEDULE)
    assert exact.verdict == kind
    assert exact.means[kind] < 1e-9
    mediocre = measure(denoiser(kind, 0.3), LATENTS, generators(), SCHEDULE)
    assert mediocre.verdict == kind
    # z is known, so an error d of x is one of d / sigma in v and of d alpha / sigma in the noise.
    factors = {"x0": 1, "v": 1 / SCHEDULE.sigma, "eps": SCHEDULE.alpha / SCHEDULE.sigma}
    for t, residual in mediocre.residuals[kind].items():
        assert residual == pytest.approx((0.3 * np.broadcast_to(factors[kind], (1000,))[t]) ** 2, rel=0.15)


@pytest.mark.parametrize("predict", [lambda z, t, index: z, lambda z, t, index: 0 * z], ids=["z", "zero"])
def test_an_untrained_network_predicts_nothing(predict: Callable[..., FloatArray]) -> None:
    assert measure(predict, LATENTS, generators(), SCHEDULE).verdict is None


def test_fresh_networks_are_probed(model_config: ModelConfig, tmp_path: Path) -> None:
    """The way through images, captions and the graph; a fresh UNet predicts nothing yet."""
    pixels = np.random.default_rng(1).integers(0, 256, (9, 12, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "0.png")
    (tmp_path / "img_txt.csv").write_text("dir,text\n0.png,noise\n")
    networks = Networks(model_config, 0)
    data = DataConfig(path=tmp_path, resolution=8)
    found = probe(networks, DiffusionConfig(), open_source(tmp_path), Online(model_config, data, 0, networks))
    assert found.verdict is None
    assert all(np.isfinite(residual) for residual in found.means.values())


def test_training_refuses_what_predicts_something_else(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = train_config.model_copy(update={"pretrained": PretrainedConfig(path=Path("sd.ckpt"))})
    residuals: dict[Any, float] = {"v": 0.8, "eps": 0.1, "x0": 1.2}

    def answer(*_: Any) -> Probe:
        return Probe({kind: {500: residual} for kind, residual in residuals.items()})

    monkeypatch.setattr(prediction_probe, "probe", answer)
    nothing: Any = None
    with pytest.raises(ConfigError, match=r"sd.ckpt: predicts eps \(residuals v 0.800.*set it to eps"):
        prediction_probe.check_prediction(config, nothing, nothing, nothing, SingleProcess())
    residuals["eps"] = 0.7
    prediction_probe.check_prediction(config, nothing, nothing, nothing, SingleProcess())
    assert "neither v nor eps nor x0 clearly" in caplog.text
    residuals["v"] = 0.1
    caplog.clear()
    prediction_probe.check_prediction(config, nothing, nothing, nothing, SingleProcess())
    assert "neither" not in caplog.text
