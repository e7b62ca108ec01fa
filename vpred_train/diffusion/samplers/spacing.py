"""Selects a sampler's timesteps, from the noisiest to the cleanest (Lin et al. 2023, arXiv 2305.08891, table 2)."""

from collections.abc import Callable

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train.arrays import FloatArray
from vpred_train.diffusion.schedule import Schedule

KARRAS_RHO = 7


def trailing_timesteps(timesteps: int, steps: int) -> list[int]:
    """Return evenly spaced timesteps that start at T-1, with the stride T / steps."""
    return [round(t) - 1 for t in np.arange(timesteps, 0, -timesteps / steps)][:steps]


def leading_timesteps(timesteps: int, steps: int) -> list[int]:
    """Return multiples of floor(T / steps), plus one as in Stable Diffusion where the stride is above one."""
    stride = timesteps // steps
    return [index * stride + min(1, stride - 1) for index in reversed(range(steps))]


def linspace_timesteps(timesteps: int, steps: int) -> list[int]:
    """Return evenly spaced timesteps from T-1 to 0, both included."""
    return [round(t) for t in np.linspace(timesteps - 1, 0, steps)]


def karras_timesteps(schedule: Schedule, steps: int) -> list[float]:
    """Return fractional timesteps with noise-to-signal ratios that are evenly spaced in their 7th root.

    The rule is eq. 5 of Karras et al. 2022 (arXiv 2206.00364). The largest ratio is that of T-1. At zero terminal SNR
    it is infinite. T-1 is then a separate first step, and the ratios start at the second timestep of trailing spacing.
    """
    last = len(schedule.alpha) - 1
    if schedule.alpha[last] > 0:
        return timesteps_at(schedule, karras_ratios(schedule.at(last).noise_to_signal, schedule, steps))
    if steps == 1:
        return [last]
    second = trailing_timesteps(last + 1, steps)[1]
    return [last, *timesteps_at(schedule, karras_ratios(schedule.at(second).noise_to_signal, schedule, steps - 1))]


def karras_ratios(largest: float, schedule: Schedule, steps: int) -> FloatArray:
    """Return ratios (steps,) float64 from `largest` down to that of t = 0 (Karras et al. 2022, eq. 5)."""
    ends = np.array([largest, schedule.at(0).noise_to_signal]) ** (1 / KARRAS_RHO)
    ratios: FloatArray = np.linspace(ends[0], ends[1], steps) ** KARRAS_RHO
    return ratios


def timesteps_at(schedule: Schedule, noise_to_signal: FloatArray) -> list[float]:
    """Return the timesteps that have these ratios; the inverse of `Schedule.at`."""
    t = np.arange(len(schedule.alpha))
    finite = schedule.alpha > 0
    logs = np.log(schedule.sigma[finite].astype(np.float64)) - np.log(schedule.alpha[finite].astype(np.float64))
    return [float(found) for found in np.interp(np.log(noise_to_signal), logs, t[finite])]


SPACINGS: dict[str, Callable[[Schedule, int], list[float]]] = {
    "trailing": lambda schedule, steps: [*trailing_timesteps(len(schedule.alpha), steps)],
    "leading": lambda schedule, steps: [*leading_timesteps(len(schedule.alpha), steps)],
    "linspace": lambda schedule, steps: [*linspace_timesteps(len(schedule.alpha), steps)],
    "karras": karras_timesteps,
}


def spaced_timesteps(spacing: str, schedule: Schedule, steps: int) -> list[float]:
    """Return `steps` strictly decreasing timesteps. Raises ConfigError: when the schedule has fewer."""
    if steps > len(schedule.alpha):
        raise ConfigError(
            f"sampling.steps: found {steps}, but the schedule has {len(schedule.alpha)} timesteps; use at most as many"
        )
    return SPACINGS[spacing](schedule, steps)
