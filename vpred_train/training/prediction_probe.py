"""Measures whether a network predicts v, the noise or the image, because some layouts of weights do not say."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor

from data import Source, sample_generator
from launcher.contract.config import ConfigError
from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.diffusion.schedule import Schedule, make_schedule
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.inputs import ModelInputs
from vpred_train.models.build import probed_schedule
from vpred_train.models.networks import Networks
from vpred_train.prepare.data import PROBED_IMAGES

SNRS = (4.0, 1.0, 0.25)  # here the targets differ clearly: at high SNR v is the noise, at low SNR minus the image
EXPLAINED = 0.5  # a larger residual explains nothing: a fresh network that returns z_t has 0.6 for eps
CLEARLY = 2.0  # the best residual must be this many times smaller than the next
NOT_FINITE = "predicts what is not finite: the weights are damaged, or their products overflow in the compute type"


@dataclass(frozen=True)
class Probe:
    """Holds the measured residuals.

    residuals: `[type][timestep]` -> |prediction - target|^2 / |target|^2, mean over images; 0 is a perfect network.
    """

    residuals: dict[PredictionType, dict[int, float]]

    @property
    def means(self) -> dict[PredictionType, float]:
        """Map each prediction type to its residual, mean over the timesteps."""
        return {kind: float(np.mean(list(by_timestep.values()))) for kind, by_timestep in self.residuals.items()}

    @property
    def finite(self) -> bool:
        """Return whether all residuals are finite. If not, the predictions were not."""
        return all(map(math.isfinite, self.means.values()))

    @property
    def verdict(self) -> PredictionType | None:
        """Return the type that explains the predictions, or None when none does clearly, as before any training."""
        means = self.means
        best, second = sorted(means, key=lambda kind: means[kind])[:2]
        return best if means[best] < EXPLAINED and CLEARLY * means[best] < means[second] else None

    def __str__(self) -> str:
        return ", ".join(f"{kind} {residual:.3f}" for kind, residual in self.means.items())


def probe(networks: Networks, diffusion: DiffusionConfig, source: Source, inputs: ModelInputs) -> Probe:
    """Let the networks denoise the first images of `source` at three noise levels, one at a time."""
    schedule = make_schedule(diffusion)
    samples = [source.sample(number) for number in range(min(PROBED_IMAGES, len(source)))]
    latents, text = inputs.of_samples(samples)
    generators = [sample_generator(0, "diffusion", 0, index) for index in range(len(samples))]

    def predict(z: FloatArray, t: int, image: int) -> FloatArray:
        inputs = (z[None], np.array([t], np.float32), text[image : image + 1])
        prediction: FloatArray = networks(*(Tensor(each) for each in inputs)).asnumpy()[0]
        return prediction

    return measure(predict, latents, generators, schedule)


def measure(predict: Any, latents: FloatArray, generators: Sequence[np.random.Generator], schedule: Schedule) -> Probe:
    """Compare the predictions with each target over latents (B, C, H, W).

    predict: function (z_t (C, H, W), t, image) -> prediction (C, H, W).
    """
    timesteps = [int(np.argmin(np.abs(np.log(np.maximum(schedule.snr, 1e-12) / snr)))) for snr in SNRS]
    residuals: dict[PredictionType, dict[int, float]] = {kind: dict.fromkeys(timesteps, 0.0) for kind in TARGETS}
    for t in timesteps:
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        for index, (x, generator) in enumerate(zip(latents, generators, strict=True)):
            noise = generator.standard_normal(x.shape, np.float32)
            prediction = predict(alpha * x + sigma * noise, t, index)
            for kind, target_of in TARGETS.items():
                target = target_of(x, noise, alpha, sigma)
                residual = np.square(prediction - target).sum() / np.square(target).sum()
                residuals[kind][t] += float(residual) / len(latents)
    return Probe(residuals)


logger = logging.getLogger(__name__)


def check_prediction(
    config: TrainConfig, networks: Networks, source: Source, inputs: ModelInputs, collective: Collective
) -> None:
    """Check what the pretrained UNet predicts, on every rank.

    Raises ConfigError: when it predicts another type than the recipe says, or its predictions are not finite.
    """
    if config.pretrained is None or "unet" not in config.pretrained.networks:
        return
    was, wanted = config.pretrained.prediction_type_was, config.diffusion.prediction_type
    expected = was or wanted
    verdict, residuals, finite = None, "", True
    if collective.rank == 0:
        found = probe(networks, probed_schedule(config), source, inputs)
        verdict, residuals, finite = found.verdict, str(found), found.finite
        logger.info("probe of the pretrained weights: residuals %s", residuals)
    verdict, residuals, finite = collective.broadcast_object((verdict, residuals, finite))
    if not finite:
        raise ConfigError(
            f"{config.pretrained.path}: {NOT_FINITE} (residuals {residuals}); give other weights, or "
            "precision.compute_dtype=float32"
        )
    if verdict not in (None, expected):
        key = "diffusion.prediction_type" if was is None else "pretrained.prediction_type_was"
        way = f", or set pretrained.prediction_type_was={verdict} to train them to predict {wanted}" * (was is None)
        raise ConfigError(
            f"{config.pretrained.path}: predicts {verdict} (residuals {residuals}), but {key} is {expected}; "
            f"set it to {verdict}{way}"
        )
    if verdict is None:
        logger.warning("the pretrained weights predict neither v nor eps nor x0 clearly (residuals %s)", residuals)
    elif expected != wanted:
        logger.info("the pretrained weights predict %s; they are trained to predict %s", expected, wanted)
