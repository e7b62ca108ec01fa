"""Samplers on a Gaussian, whose best denoiser and whose probability-flow ODE are known in closed form."""

from collections.abc import Callable

import numpy as np
import pytest

from vpred_train.config import DiffusionConfig
from vpred_train.diffusion.samplers import SAMPLERS, STOCHASTIC, guided
from vpred_train.diffusion.samplers_multistep import dpmpp_2m
from vpred_train.diffusion.samplers_single_step import ddim
from vpred_train.diffusion.samplers_spacing import trailing_timesteps
from vpred_train.diffusion.schedule import Schedule, make_schedule

STD = 0.4


def denoiser(schedule: Schedule, std: float) -> Callable[[np.ndarray, int], np.ndarray]:
    """v of the posterior mean for data x ~ N(0, std^2)."""

    def model(z: np.ndarray, t: int) -> np.ndarray:
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        x = z * alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        noise = z * sigma / (alpha**2 * std**2 + sigma**2)
        return alpha * noise - sigma * x

    return model


def exact_at(schedule: Schedule, z: np.ndarray, start: int, end: int) -> np.ndarray:
    """The ODE keeps z / sqrt(alpha^2 std^2 + sigma^2) constant."""

    def spread(t: int) -> float:
        return float(np.hypot(schedule.alpha[t] * STD, schedule.sigma[t]))

    return z * spread(end) / spread(start)


def test_trailing_timesteps_start_at_the_noisiest() -> None:
    assert trailing_timesteps(1000, 4) == [999, 749, 499, 249]
    # 1000 / 15 is no integer: rounded one by one, never accumulated.
    assert trailing_timesteps(1000, 15) == [
        999, 932, 866, 799, 732, 666, 599, 532, 466, 399, 332, 266, 199, 132, 66,
    ]  # fmt: skip
    assert len(set(trailing_timesteps(1000, 1000))) == 1000


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_point_distribution_is_returned_exactly(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    target = np.random.default_rng(1).standard_normal((2, 3, 4, 4))

    def model(z: np.ndarray, t: int) -> np.ndarray:
        alpha, sigma = float(schedule.alpha[t]), float(schedule.sigma[t])
        return alpha * (z - alpha * target) / sigma - sigma * target

    z = np.random.default_rng(2).standard_normal(target.shape)
    options = {"noise": lambda shape, step: np.random.default_rng(step).standard_normal(shape)}
    for steps in (1, 2, 7, 15):
        timesteps = trailing_timesteps(1000, steps)
        found = SAMPLERS[name](model, z, schedule, timesteps, **(options if name in STOCHASTIC else {}))
        np.testing.assert_allclose(found, target, atol=2e-5)


def error(sampler: Callable[..., np.ndarray], steps: int) -> float:
    """Error of the latents that reach the last of steps + 1 times, evenly spaced in log SNR, float64."""
    half_log_snr = np.linspace(-2.5, 2.5, steps + 1)
    schedule = Schedule(1 / np.sqrt(1 + np.exp(-2 * half_log_snr)), 1 / np.sqrt(1 + np.exp(2 * half_log_snr)))
    z = np.array([[[[1.0]]]])
    seen: list[np.ndarray] = []
    model = denoiser(schedule, STD)

    def watched(z: np.ndarray, t: int) -> np.ndarray:
        seen.append(z)
        return model(z, t)

    sampler(watched, z, schedule, range(steps + 1))
    return float(np.abs(seen[-1] - exact_at(schedule, z, 0, steps)).max())


def test_ddim_is_of_first_order() -> None:
    ratio = error(ddim, 40) / error(ddim, 80)
    assert 1.8 < ratio < 2.2


def test_dpmpp_2m_is_of_second_order_and_better() -> None:
    ratio = error(dpmpp_2m, 40) / error(dpmpp_2m, 80)
    assert 3.5 < ratio < 4.5
    assert error(dpmpp_2m, 40) < error(ddim, 40) / 3


def test_first_order_dpmpp_equals_ddim() -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    model = denoiser(schedule, STD)
    z = np.random.default_rng(3).standard_normal((1, 1, 2, 2))
    # Two steps: the first has no history, the last returns x. Nothing of second order is left.
    for timesteps in ([999, 400], [700, 10]):
        np.testing.assert_allclose(
            dpmpp_2m(model, z, schedule, timesteps), ddim(model, z, schedule, timesteps), atol=1e-6
        )


def test_guidance() -> None:
    conditional, unconditional = np.array([3.0]), np.array([1.0])
    assert guided(conditional, unconditional, 1.0) == 3
    assert guided(conditional, unconditional, 0.0) == 1
    assert guided(conditional, unconditional, 2.0) == 5
