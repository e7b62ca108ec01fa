"""Defines what the network predicts, and the record of it that travels with the weights.

z = alpha x + sigma noise and alpha^2 + sigma^2 = 1. The functions take arrays or tensors that broadcast.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.contract.config import Section
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig


def v_target(x: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """Return v = alpha noise - sigma x (Salimans & Ho 2022, arXiv 2202.00512, appendix D)."""
    return alpha * noise - sigma * x


def x_from_v(z: Any, v: Any, alpha: Any, sigma: Any) -> Any:
    """Return x = alpha z - sigma v (ibid.)."""
    return alpha * z - sigma * v


def x_from_noise(z: Any, noise: Any, alpha: Any, sigma: Any) -> Any:
    """Return x = (z - sigma noise) / alpha, which is undefined at alpha = 0."""
    return (z - sigma * noise) / alpha


def noise_from_x(z: Any, x: Any, alpha: Any, sigma: Any) -> Any:
    """Return noise = (z - alpha x) / sigma, which is undefined at sigma = 0."""
    return (z - alpha * x) / sigma


def noise_target(_x: Any, noise: Any, _alpha: Any, _sigma: Any) -> Any:
    """Return the noise, the target of an eps model (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""
    return noise


def x_target(x: Any, _noise: Any, _alpha: Any, _sigma: Any) -> Any:
    """Return x, the target of an x0 model."""
    return x


def x_unchanged(_z: Any, x: Any, _alpha: Any, _sigma: Any) -> Any:
    """Return x, the prediction of an x0 model."""
    return x


TARGETS: dict[PredictionType, Callable[[Any, Any, Any, Any], Any]] = {
    "v": v_target,
    "eps": noise_target,
    "x0": x_target,
}
X_FROM_PREDICTION: dict[PredictionType, Callable[[Any, Any, Any, Any], Any]] = {
    "v": x_from_v,
    "eps": x_from_noise,
    "x0": x_unchanged,
}


class ParameterizationRecord(Section):
    """Records all that a reader of the weights must know to use them; it is the only record of the prediction type.

    average: profile of our moving average, such as power_0.07; None for raw weights and weights of others.
    resolution: side of the training images, pixels.
    base_xxh3: for LoRA factors, the digest of the weights that they were trained on, if known.
    base_prediction_type: for LoRA factors, the type that those weights predict, if the factors change it.
    """

    format: Literal["vpred-parameterization-1"] = "vpred-parameterization-1"
    weights: Literal["raw", "ema"]
    average: str | None = None
    samples_seen: int
    resolution: Annotated[int, Field(gt=0)]
    diffusion: DiffusionConfig
    model: ModelConfig
    base_xxh3: str | None = None
    base_prediction_type: PredictionType | None = None


def record_of(config: TrainConfig, average: str | None, samples_seen: int) -> ParameterizationRecord:
    """Make the record of a run's raw weights, or of their moving average named `average`."""
    base = config.pretrained if config.lora else None
    return ParameterizationRecord(
        weights="raw" if average is None else "ema",
        average=average,
        samples_seen=samples_seen,
        resolution=config.data.resolution,
        diffusion=config.diffusion,
        model=config.model,
        base_xxh3=base.xxh3 if base else None,
        base_prediction_type=base.prediction_type_was if base else None,
    )
