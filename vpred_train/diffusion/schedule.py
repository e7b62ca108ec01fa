"""Computes the discrete noise schedule of Stable Diffusion: tables in float64 on the host, then float32."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import DiffusionConfig


class Level(NamedTuple):
    """Holds the noise level of z = alpha x + sigma noise at one time; alpha^2 + sigma^2 = 1."""

    alpha: float
    sigma: float

    @property
    def half_log_snr(self) -> float:
        """Return lambda = log(alpha / sigma); -inf at alpha = 0."""
        return math.log(self.alpha) - math.log(self.sigma) if self.alpha > 0 else -math.inf

    @property
    def noise_to_signal(self) -> float:
        """Return sigma / alpha, the sigma of Karras et al. 2022 (arXiv 2206.00364); inf at alpha = 0."""
        return self.sigma / self.alpha if self.alpha > 0 else math.inf


@dataclass(frozen=True)
class Schedule:
    """Holds the tables of z_t = alpha[t] z_0 + sigma[t] noise for t = 0 .. T-1.

    alpha, sigma: (T,) float32.
    """

    alpha: FloatArray
    sigma: FloatArray

    def at(self, t: float) -> Level:
        """Return the level at t in [0, T-1]; between two timesteps log(sigma / alpha) is interpolated linearly."""
        below = math.floor(t)
        if below == t:
            return Level(float(self.alpha[below]), float(self.sigma[below]))
        half_log_snr = (1 - t + below) * self.at(below).half_log_snr + (t - below) * self.at(below + 1).half_log_snr
        return Level(1 / math.sqrt(1 + math.exp(-2 * half_log_snr)), 1 / math.sqrt(1 + math.exp(2 * half_log_snr)))

    @property
    def snr(self) -> FloatArray:
        """Return the signal-to-noise ratio alpha^2 / sigma^2, (T,) float64 (Kingma et al. 2021, eq. 2)."""
        return (self.alpha.astype(np.float64) / self.sigma) ** 2


def alphas_cumprod(config: DiffusionConfig) -> FloatArray:
    """Return alpha_bar (T,) float64 (Ho et al. 2020, eq. 4); betas are linear in their square root (scaled-linear)."""
    roots = np.linspace(config.beta_start**0.5, config.beta_end**0.5, config.timesteps, dtype=np.float64)
    cumulative = np.cumprod(1 - roots**2)
    return rescale_zero_terminal_snr(cumulative) if config.zero_terminal_snr else cumulative


def rescale_zero_terminal_snr(cumulative: FloatArray) -> FloatArray:
    """Shift and scale sqrt(alpha_bar) so that the last is zero and the first is kept (Lin et al. 2023, alg. 1)."""
    root = np.sqrt(cumulative)
    return ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2


def make_schedule(config: DiffusionConfig) -> Schedule:
    """Make the schedule that trainer and sampler share. 1 - alpha_bar is computed only in float64."""
    cumulative = alphas_cumprod(config)
    return Schedule(np.sqrt(cumulative).astype(np.float32), np.sqrt(1 - cumulative).astype(np.float32))
