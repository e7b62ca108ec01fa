"""Samplers for v-prediction models: plain functions of (model, z_T, schedule, timesteps).

`model(z, t)` returns the (guided) v for latents z (B, C, H, W), float32, at the integer timestep t. The step from the
last timestep goes to sigma = 0, where every sampler here returns its prediction of x exactly.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from vpred_train.diffusion.parameterization import noise_from_v, x_from_v
from vpred_train.diffusion.schedule import FloatArray, Schedule

Model = Callable[[FloatArray, int], FloatArray]
Sampler = Callable[[Model, FloatArray, Schedule, Sequence[int]], FloatArray]


def trailing_timesteps(timesteps: int, steps: int) -> list[int]:
    """Evenly spaced and ending at T-1, from the noisiest to the cleanest (Lin et al. 2023, table 2)."""
    return [round(t) - 1 for t in np.arange(timesteps, 0, -timesteps / steps)][:steps]


def ddim(model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[int]) -> FloatArray:
    """Deterministic DDIM (Song et al. 2020, arXiv 2010.02502, eq. 12 with sigma_t = 0)."""
    x = z
    for step, t in enumerate(timesteps):
        alpha, sigma = schedule.alpha[t], schedule.sigma[t]
        v = model(z, t)
        x = x_from_v(z, v, alpha, sigma)
        if step + 1 < len(timesteps):
            following = timesteps[step + 1]
            z = schedule.alpha[following] * x + schedule.sigma[following] * noise_from_v(z, v, alpha, sigma)
    return x


def dpmpp_2m(model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[int]) -> FloatArray:
    """DPM-Solver++ (2M) in data prediction (Lu et al. 2022, arXiv 2211.01095, alg. 2), v converted to x.

    The first step has no history and the step after an infinite interval (alpha = 0) has no usable one: both are of
    first order. The last step goes to sigma = 0 and returns x.
    """
    x = z
    previous: FloatArray | None = None
    h_previous = np.inf
    for step, t in enumerate(timesteps):
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        x = x_from_v(z, model(z, t), alpha, sigma)
        if step + 1 == len(timesteps):
            break
        following = timesteps[step + 1]
        alpha_next, sigma_next = float(schedule.alpha[following]), float(schedule.sigma[following])
        h = log_snr_half(alpha_next, sigma_next) - log_snr_half(alpha, sigma)
        direction = x
        if previous is not None and np.isfinite(h_previous):
            direction = x + (h / (2 * h_previous)) * (x - previous)
        z = np.float32(sigma_next / sigma) * z - np.float32(alpha_next * np.expm1(-h)) * direction
        previous, h_previous = x, h
    return x


def log_snr_half(alpha: float, sigma: float) -> float:
    """lambda = log(alpha / sigma); -inf at alpha = 0."""
    return float(np.log(alpha) - np.log(sigma)) if alpha > 0 else -np.inf


def guided(conditional: Any, unconditional: Any, guidance_scale: float | np.floating[Any]) -> Any:
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598, eq. 6): scale 1 is the conditional model.

    The weights sum to one, so that guiding v, noise or x is the same.
    """
    return unconditional + guidance_scale * (conditional - unconditional)


SAMPLERS: dict[str, Sampler] = {"dpmpp_2m": dpmpp_2m, "ddim": ddim}
