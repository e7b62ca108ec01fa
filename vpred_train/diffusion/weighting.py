"""Defines the loss weights. Each is written once, as the weight w_x of |x - x0|^2; its form on v and noise follows.

With s = SNR and alpha^2 + sigma^2 = 1, errors at the same z_t are |dv|^2 = (1 + s) |dx|^2 and |deps|^2 = s |dx|^2
(Salimans & Ho 2022, arXiv 2202.00512). Therefore w_v = w_x / (1 + s) and w_eps = w_x / s are the same objective.
Weights are not normalised, so that figures and learning rates match those of the papers. All arrays are (T,) float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import PredictionType
from vpred_train.config.objective import ObjectiveConfig, Weight

# Natural logarithms of SNR. SD2 begins at 7.1 and ends at -5.4, or at -inf with zero terminal SNR.
LOG_SNR_EDGES = (-math.inf, -4.0, -2.0, 0.0, 2.0, 4.0, math.inf)


def uniform_v(snr: FloatArray) -> FloatArray:
    """Return 1 + s, "SNR + 1", which is 1 on v (Salimans & Ho 2022, section 4)."""
    return 1 + snr


def eps_simple(snr: FloatArray) -> FloatArray:
    """Return s, which is 1 on the noise, "L_simple" (Ho et al. 2020, arXiv 2006.11239, eq. 14)."""
    return snr


def x0_simple(snr: FloatArray) -> FloatArray:
    """Return 1 on the image; trainers also call its form on v, 1 / (1 + s), "debiased"."""
    return np.ones_like(snr)


def snr_trunc(snr: FloatArray) -> FloatArray:
    """Return max(s, 1): eps_simple that never falls below x0_simple (Salimans & Ho 2022, section 4)."""
    return np.maximum(snr, 1)


def min_snr(snr: FloatArray, gamma: float = 5.0) -> FloatArray:
    """Return min(s, gamma) (Hang et al. 2023, arXiv 2303.09556)."""
    return np.minimum(snr, gamma)


def soft_min_snr(snr: FloatArray, gamma: float = 5.0) -> FloatArray:
    """Return s gamma / (s + gamma): min_snr without its kink (Crowson et al. 2024, arXiv 2401.11605)."""
    return snr * gamma / (snr + gamma)


def debiased(snr: FloatArray) -> FloatArray:
    """Return sqrt(s), which is 1 / sqrt(s) on the noise (Yu et al. 2023, arXiv 2310.08442)."""
    return np.sqrt(snr)


def p2(snr: FloatArray, gamma: float = 1.0) -> FloatArray:
    """Return s / (1 + s)^gamma: (1 + s)^-gamma on the noise (Choi et al. 2022, arXiv 2204.00227, with k = 1)."""
    return snr / (1 + snr) ** gamma


# The weight that is 1 on a prediction is also the ratio of its squared error to that of the image.
UNIFORM: dict[PredictionType, Callable[[FloatArray], FloatArray]] = {
    "v": uniform_v,
    "eps": eps_simple,
    "x0": x0_simple,
}
WEIGHTS: dict[Weight, Callable[..., FloatArray]] = {
    "uniform_v": uniform_v,
    "eps_simple": eps_simple,
    "x0_simple": x0_simple,
    "snr_trunc": snr_trunc,
    "min_snr": min_snr,
    "soft_min_snr": soft_min_snr,
    "debiased": debiased,
    "p2": p2,
}


def image_weights(config: ObjectiveConfig, prediction_type: PredictionType, snr: FloatArray) -> FloatArray:
    """Return w_x of the objective, with its terminal floor: w_x = max(w_x, floor)."""
    weight: Callable[..., FloatArray] = (
        UNIFORM[prediction_type] if config.weight == "uniform" else WEIGHTS[config.weight]
    )
    weights = weight(snr) if config.gamma is None else weight(snr, config.gamma)
    return weights if config.terminal_floor is None else np.maximum(weights, config.terminal_floor)


def loss_weights(config: ObjectiveConfig, prediction_type: PredictionType, snr: FloatArray) -> FloatArray:
    """Return the weight of the squared error of the network's prediction.

    Raises ValueError: when the network predicts noise and some SNR is 0, where noise says nothing about the image.
    """
    if prediction_type == "eps" and not snr.all():
        raise ValueError("the SNR falls to 0, where a prediction of the noise says nothing about the image")
    return image_weights(config, prediction_type, snr) / UNIFORM[prediction_type](snr)


@dataclass(frozen=True)
class SnrBin:
    """Holds a range low <= log SNR < high with its share of the drawn timesteps and of the weight.

    samples, weight: fractions of 1.
    """

    low: float
    high: float
    samples: float
    weight: float

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}) {self.weight:.2%} ({self.samples:.1%})"


def weight_mass(image_weights: FloatArray, probabilities: FloatArray, snr: FloatArray) -> tuple[SnrBin, ...]:
    """Return how the weight is distributed over log SNR when timestep t is drawn with `probabilities[t]`.

    The weight on v is used for every prediction type. v has about unit size at every SNR, so the bins are comparable.
    """
    mass = probabilities * image_weights / uniform_v(snr)
    mass /= mass.sum()
    bins = []
    for low, high in pairwise(LOG_SNR_EDGES):
        inside = (snr >= math.exp(low)) & (snr < math.exp(high))
        bins.append(SnrBin(low, high, float(probabilities[inside].sum()), float(mass[inside].sum())))
    return tuple(bins)
