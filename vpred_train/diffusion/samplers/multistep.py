"""Implements samplers that reuse earlier predictions: DPM-Solver, DPM-Solver++, UniPC and PLMS.

Arguments and result are those of `single_step`. lambda is half the log SNR and h its growth over a step.
From alpha = 0 h is infinite: the step takes its exact first-order limit. A prediction behind an infinite interval is no
history in lambda for the next step.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import PredictionType
from vpred_train.diffusion.parameterization import noise_from_x, x_from_noise
from vpred_train.diffusion.samplers.denoiser import Model, Noise, denoiser
from vpred_train.diffusion.schedule import Level, Schedule

# Number of predictions -> their weights, newest first (Liu et al. 2022, eq. 12, and its shorter forms).
ADAMS_BASHFORTH = {
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


def midpoint(current: FloatArray, before: FloatArray, h: float, h_before: float) -> FloatArray:
    """Extrapolate the last two predictions linearly in lambda by half a step; constant without history."""
    return current + (h / (2 * h_before)) * (current - before) if math.isfinite(h_before) else current


def dpm_solver_2(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Sample with multistep DPM-Solver of second order in noise prediction (Lu et al. 2022, arXiv 2206.00927, eq. 3.7).

    The multistep form is from the authors' second paper, arXiv 2211.01095, section 4.2.
    """
    denoise = denoiser(model, schedule, prediction_type)
    before, h_before = z, math.inf
    for t, following in pairwise(timesteps):
        now, then = schedule.at(t), schedule.at(following)
        h = then.half_log_snr - now.half_log_snr
        x = denoise(z, t)
        noise = noise_from_x(z, x, now.alpha, now.sigma)
        if now.alpha > 0:
            slope = midpoint(noise, before, h, h_before)
            z = (then.alpha / now.alpha) * z - then.sigma * math.expm1(h) * slope
        else:
            z = then.alpha * x + then.sigma * noise
        before, h_before = noise, h
    return denoise(z, timesteps[-1])


def dpmpp_2m(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Sample with DPM-Solver++ (2M) in data prediction (Lu et al. 2022, arXiv 2211.01095, alg. 2)."""
    denoise = denoiser(model, schedule, prediction_type)
    before, h_before = z, math.inf
    for t, following in pairwise(timesteps):
        now, then = schedule.at(t), schedule.at(following)
        h = then.half_log_snr - now.half_log_snr
        x = denoise(z, t)
        slope = midpoint(x, before, h, h_before)
        z = (then.sigma / now.sigma) * z - then.alpha * math.expm1(-h) * slope
        before, h_before = x, h
    return denoise(z, timesteps[-1])


def dpmpp_2m_sde(
    model: Model,
    z: FloatArray,
    schedule: Schedule,
    timesteps: Sequence[float],
    prediction_type: PredictionType = "v",
    *,
    noise: Noise,
) -> FloatArray:
    """Sample with SDE-DPM-Solver++ (2M) (Lu et al. 2022, arXiv 2211.01095, on solvers for diffusion SDEs).

    From alpha = 0 the step discards z completely, as the SDE does.
    """
    denoise = denoiser(model, schedule, prediction_type)
    before, h_before = z, math.inf
    for step, (t, following) in enumerate(pairwise(timesteps)):
        now, then = schedule.at(t), schedule.at(following)
        h = then.half_log_snr - now.half_log_snr
        x = denoise(z, t)
        slope = midpoint(x, before, h, h_before)
        renewed = -math.expm1(-2 * h)
        kept = then.sigma / now.sigma * math.exp(-h)
        z = kept * z + then.alpha * renewed * slope + then.sigma * math.sqrt(renewed) * noise(z.shape, step)
        before, h_before = x, h
    return denoise(z, timesteps[-1])


def unipc(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Sample with UniPC-2 in data prediction (Zhao et al. 2023, arXiv 2302.04867, alg. 1, 2, appendix).

    B(h) = e^-h - 1 ("bh2"). UniP-2 predicts z at the next timestep. The model's prediction there serves both UniC-2,
    which corrects z, and the next step. Without history both are of order one, whose weight the authors set to 1/2.
    """
    denoise = denoiser(model, schedule, prediction_type)
    before, h_before = z, math.inf
    x = denoise(z, timesteps[0])
    for t, following in pairwise(timesteps):
        now, then = schedule.at(t), schedule.at(following)
        h = then.half_log_snr - now.half_log_snr
        gain = -then.alpha * math.expm1(-h)
        first_order = (then.sigma / now.sigma) * z + gain * x
        if math.isfinite(h_before):
            ratio = -h_before / h
            slope = (before - x) / ratio
            x_then = denoise(first_order + gain * slope / 2, following)
            weight_before, weight_then = unic_weights(h, ratio)
            z = first_order + gain * (weight_before * slope + weight_then * (x_then - x))
        else:
            x_then = denoise(first_order, following)
            z = first_order + gain * (x_then - x) / 2
        before, h_before, x = x, h, x_then
    return x


def unic_weights(h: float, ratio: float) -> tuple[float, float]:
    """Return UniC-2's weights of the differences to the predictions at lambda + ratio h and at lambda + h.

    They solve R(h) rho = phi(h) / B(h) (ibid., eq. 5 for data prediction): row k matches a polynomial of degree k.
    """
    phi_1 = math.expm1(-h)
    phi_2 = phi_1 / -h - 1
    phi_3 = phi_2 / -h - 1 / 2
    weight_before = (phi_2 - 2 * phi_3) / phi_1 / (1 - ratio)
    return weight_before, phi_2 / phi_1 - weight_before


def plms(
    model: Model, z: FloatArray, schedule: Schedule, timesteps: Sequence[float], prediction_type: PredictionType = "v"
) -> FloatArray:
    """Sample with PLMS: F-PNDM without Runge-Kutta warm-up (Liu et al. 2022, arXiv 2202.09778, eq. 11, 12).

    It takes DDIM's step with a noise that Adams-Bashforth averages over the step, up to fourth order in the step's
    number. The spacing must therefore be smooth. The method is of second order. The first step is an improved Euler
    step (one more model call). From alpha = 0 the first step is DDIM's; its noise, z_T itself, counts as history.
    """
    denoise = denoiser(model, schedule, prediction_type)
    history: list[FloatArray] = []
    for t, following in pairwise(timesteps):
        now, then = schedule.at(t), schedule.at(following)
        x = denoise(z, t)
        history = [noise_from_x(z, x, now.alpha, now.sigma), *history[:3]]
        if now.alpha == 0:
            z = then.alpha * x + then.sigma * history[0]
        elif len(history) == 1:
            trial = transfer(z, history[0], now, then)
            noise_then = noise_from_x(trial, denoise(trial, following), then.alpha, then.sigma)
            z = transfer(z, (history[0] + noise_then) / 2, now, then)
        else:
            weights = ADAMS_BASHFORTH[len(history)]
            average = sum((weight * noise for weight, noise in zip(weights, history, strict=True)), np.zeros_like(z))
            z = transfer(z, average, now, then)
    return denoise(z, timesteps[-1])


def transfer(z: FloatArray, noise: FloatArray, now: Level, then: Level) -> FloatArray:
    """Take DDIM's step for a given noise (Liu et al. 2022, eq. 11)."""
    moved: FloatArray = then.alpha * x_from_noise(z, noise, now.alpha, now.sigma) + then.sigma * noise
    return moved
