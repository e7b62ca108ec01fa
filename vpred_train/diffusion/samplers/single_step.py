"""Implements samplers that need no history: DDIM, its equivalents in Karras' variables, and Heun.

All are functions of (model, z_T, schedule, timesteps) and return x (B, C, H, W) float32. The step from the last
timestep goes to sigma = 0, where z is the prediction of x.
z_T: (B, C, H, W) float32.
timesteps: from the noisiest to the cleanest.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import PredictionType
from vpred_train.diffusion.parameterization import noise_from_x
from vpred_train.diffusion.samplers.denoiser import Model, Noise, denoiser
from vpred_train.diffusion.schedule import Schedule


def ddim(
    model: Model,
    z: FloatArray,
    schedule: Schedule,
    timesteps: Sequence[float],
    prediction_type: PredictionType = "v",
    eta: float = 0.0,
    noise: Noise | None = None,
) -> FloatArray:
    """Sample with DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 and 16).

    It is exact at alpha = 0, where x = -v and the noise is z.
    eta: 0 is deterministic, 1 is DDPM.
    noise: needed when eta is above 0.
    Raises ValueError: when eta is above 0 and `noise` is None.
    """
    if eta > 0 and noise is None:
        raise ValueError(f"eta {eta} needs a source of noise")
    denoise = denoiser(model, schedule, prediction_type)
    for step, (t, following) in enumerate(pairwise(timesteps)):
        now, then = schedule.at(t), schedule.at(following)
        x = denoise(z, t)
        std = eta * then.sigma / now.sigma * math.sqrt(1 - (now.alpha / then.alpha) ** 2)
        # The schedule's rounding to float32 could make the difference slightly negative.
        direction = math.sqrt(max(then.sigma**2 - std**2, 0)) * noise_from_x(z, x, now.alpha, now.sigma)
        z = then.alpha * x + direction
        if noise is not None and std > 0:
            z = z + std * noise(z.shape, step)
    return denoise(z, timesteps[-1])


def euler(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Use Euler's method on dy/dk = (y - x) / k, y = z / alpha, k = sigma / alpha (Karras et al. 2022, eq. 3, alg. 2).

    y = x + k noise, so the step y + (k' - k) noise ends at x + k' noise. This is DDIM's step, which also holds where k
    is infinite.
    """
    return ddim(model, z, schedule, timesteps, prediction_type)


def euler_ancestral(
    model: Model,
    z: FloatArray,
    schedule: Schedule,
    timesteps: Sequence[float],
    prediction_type: PredictionType = "v",
    *,
    noise: Noise,
) -> FloatArray:
    """Take an Euler step to k_down, then add noise of k_up: the ancestral sampler of Crowson's k-diffusion.

    k_up^2 = k'^2 (k^2 - k'^2) / k^2 and k_down^2 = k'^2 - k_up^2. alpha' k_up is eq. 16 of DDIM with eta = 1, so this
    sampler equals DDIM with eta = 1.
    """
    return ddim(model, z, schedule, timesteps, prediction_type, eta=1.0, noise=noise)


def heun(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Use Heun's method on dy/dk = noise (Karras et al. 2022, arXiv 2206.00364, alg. 1).

    It needs 2 * steps - 1 model calls. y + (k' - k) (noise + noise') / 2 is written as Euler's point plus half the
    change of slope. From k = inf (alpha = 0) this change has no finite weight, so that step is of first order.
    """
    denoise = denoiser(model, schedule, prediction_type)
    for t, following in pairwise(timesteps):
        now, then = schedule.at(t), schedule.at(following)
        x = denoise(z, t)
        slope = noise_from_x(z, x, now.alpha, now.sigma)
        z = then.alpha * x + then.sigma * slope
        if now.alpha > 0:
            slope_then = noise_from_x(z, denoise(z, following), then.alpha, then.sigma)
            half_width = (then.noise_to_signal - now.noise_to_signal) / 2
            z = z + then.alpha * half_width * (slope_then - slope)
    return denoise(z, timesteps[-1])
