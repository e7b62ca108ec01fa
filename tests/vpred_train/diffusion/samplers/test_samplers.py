"""Samplers on a Gaussian, whose best denoiser and whose probability-flow ODE are known in closed form."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.samplers.multistep import dpmpp_2m, unic_weights
from vpred_train.diffusion.samplers.registry import SAMPLERS, STOCHASTIC, guided, rescale_guidance
from vpred_train.diffusion.samplers.single_step import ddim
from vpred_train.diffusion.samplers.spacing import SPACINGS, spaced_timesteps, trailing_timesteps
from vpred_train.diffusion.schedule import Schedule, make_schedule

STD = 0.4
MEAN = 0.7
HALF_LOG_SNR = np.linspace(2.5, -2.5, 1025)
# Float64, and so many timesteps that up to 128 steps can be evenly spaced.
FINE = Schedule(1 / np.sqrt(1 + np.exp(-2 * HALF_LOG_SNR)), 1 / np.sqrt(1 + np.exp(2 * HALF_LOG_SNR)))
STEPS = (16, 32, 64, 128)
# UniC raises UniP's order by one (Zhao et al. 2023, theorem 3.1).
ORDERS = {"ddim": 1, "euler": 1, "dpm_solver_2": 2, "dpmpp_2m": 2, "heun": 2, "plms": 2, "unipc": 3}

Model = Callable[[np.ndarray, float], np.ndarray]


def denoiser(schedule: Schedule, mean: float = MEAN) -> Model:
    """The posterior mean for data x ~ N(mean, STD^2)."""

    def model(z: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = schedule.at(t)
        return mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * mean)

    return model


def spread(schedule: Schedule, t: float) -> float:
    """Standard deviation of z at t."""
    alpha, sigma = schedule.at(t)
    return float(np.hypot(alpha * STD, sigma))


def exact_at(schedule: Schedule, z: np.ndarray, start: float, end: float) -> np.ndarray:
    """The ODE keeps (z - alpha mean) / sqrt(alpha^2 STD^2 + sigma^2) constant."""
    distance = (z - schedule.at(start).alpha * MEAN) / spread(schedule, start)
    return schedule.at(end).alpha * MEAN + distance * spread(schedule, end)


def fine_timesteps(steps: int) -> range:
    return range(1024, -1, -1024 // steps)


def reached(name: str, schedule: Schedule, z: np.ndarray, timesteps: Any, **options: Any) -> np.ndarray:
    """The latents with which the sampler arrives at the last timestep."""
    seen: list[np.ndarray] = []
    model = denoiser(schedule)

    def watched(z: np.ndarray, t: float) -> np.ndarray:
        seen.append(z)
        return model(z, t)

    x = SAMPLERS[name](watched, z, schedule, timesteps, "x0", **options)
    np.testing.assert_array_equal(x, model(seen[-1], timesteps[-1]))
    return seen[-1]


def order(errors: list[float]) -> float:
    """Slope of log error over log steps, without the coarsest."""
    return -float(np.polyfit(np.log(STEPS[1:]), np.log(errors[1:]), 1)[0])


def ode_error(name: str, steps: int) -> float:
    z, timesteps = np.full((1, 1, 1, 1), 1.3), fine_timesteps(steps)
    return float(np.abs(reached(name, FINE, z, timesteps) - exact_at(FINE, z, 1024, 0)).max())


@pytest.mark.parametrize("name", sorted(ORDERS))
def test_order_of_convergence_to_the_ode(name: str) -> None:
    errors = [ode_error(name, steps) for steps in STEPS]
    assert order(errors) == pytest.approx(ORDERS[name], abs=0.1)
    assert errors[-1] < {1: 5e-3, 2: 2e-4, 3: 5e-6}[ORDERS[name]]


def moments(name: str, schedule: Schedule, timesteps: Any, **options: Any) -> tuple[float, float]:
    """Mean and variance of z at the last timestep for z_T of the right ones, exactly and without chance.

    The denoiser is affine, so z is too in z_T and in the noise of each step: each row of the batch probes one of them.
    """
    steps = len(timesteps)
    z = np.full((steps + 1, 1, 1, 1), schedule.at(timesteps[0]).alpha * MEAN)
    z[1] += spread(schedule, timesteps[0])

    def noise(shape: tuple[int, ...], step: int) -> np.ndarray:
        one_hot = np.zeros(shape)
        one_hot[2 + step] = 1
        return one_hot

    found = reached(name, schedule, z, timesteps, noise=noise, **options).ravel()
    return float(found[0]), float(((found[1:] - found[0]) ** 2).sum())


STOCHASTIC_CASES = {
    "ddim, eta 0.5": ("ddim", {"eta": 0.5}, 1),
    "ddim, eta 1": ("ddim", {"eta": 1.0}, 1),
    "euler_ancestral": ("euler_ancestral", {}, 1),
    "dpmpp_2m_sde": ("dpmpp_2m_sde", {}, 2),
}


@pytest.mark.parametrize("case", sorted(STOCHASTIC_CASES))
def test_stochastic_samplers_reproduce_mean_and_variance(case: str) -> None:
    name, options, expected = STOCHASTIC_CASES[case]
    errors = []
    for steps in STEPS:
        mean, variance = moments(name, FINE, fine_timesteps(steps), **options)
        assert mean == pytest.approx(FINE.at(0).alpha * MEAN, abs=1e-12)
        errors.append(abs(variance - spread(FINE, 0) ** 2))
    assert order(errors) == pytest.approx(expected, abs=0.15)
    assert errors[-1] < {1: 1e-2, 2: 1e-4}[expected]


@pytest.mark.parametrize("name", sorted(STOCHASTIC))
def test_mean_and_variance_from_snr_zero(name: str) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    timesteps = spaced_timesteps("karras", schedule, 400)
    options = {"eta": 1.0} if name == "ddim" else {}
    mean, variance = moments(name, schedule, timesteps, **options)
    assert mean == pytest.approx(schedule.at(0).alpha * MEAN, abs=1e-6)
    assert variance == pytest.approx(spread(schedule, 0) ** 2, rel=0.002 if name == "dpmpp_2m_sde" else 0.05)


@pytest.mark.parametrize("name", sorted(ORDERS))
@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ode_on_the_schedule_of_stable_diffusion(name: str, spacing: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    z = np.array([-1.2, 0.1, 1.3]).reshape(3, 1, 1, 1)
    timesteps = spaced_timesteps(spacing, schedule, 240)
    error = np.abs(reached(name, schedule, z, timesteps) - exact_at(schedule, z, timesteps[0], timesteps[-1])).max()
    assert error < (0.01 if ORDERS[name] == 1 else 0.005)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_point_distribution_is_returned_exactly(name: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    target = np.random.default_rng(1).standard_normal((2, 3, 4, 4))

    def model(z: np.ndarray, t: float) -> np.ndarray:
        alpha, sigma = schedule.at(t)
        return alpha * (z - alpha * target) / sigma - sigma * target

    z = np.random.default_rng(2).standard_normal(target.shape)
    options = {"noise": lambda shape, step: np.random.default_rng(step).standard_normal(shape)}
    for steps in (1, 2, 7, 15):
        timesteps = trailing_timesteps(1000, steps)
        found = SAMPLERS[name](model, z, schedule, timesteps, **(options if name in STOCHASTIC else {}))
        np.testing.assert_allclose(found, target, atol=2e-5)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_first_step_at_snr_zero_uses_minus_v(name: str) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    v = np.array([0.3, -0.8]).reshape(1, 2, 1, 1)
    z = np.array([1.5, -0.4]).reshape(1, 2, 1, 1)
    fresh = np.array([-0.2, 0.9]).reshape(1, 2, 1, 1)
    seen: list[np.ndarray] = []

    def model(z: np.ndarray, t: float) -> np.ndarray:
        seen.append(z)
        return v

    options = {"noise": lambda shape, step: fresh} if name in STOCHASTIC else {}
    SAMPLERS[name](model, z, schedule, [999, 800], **options)
    rest = fresh if name in STOCHASTIC - {"ddim"} else z
    np.testing.assert_allclose(seen[1], schedule.alpha[800] * -v + schedule.sigma[800] * rest, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_an_eps_model_at_snr_zero_is_the_users_mistake(name: str) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    options = {"noise": lambda shape, step: np.zeros(shape)} if name in STOCHASTIC else {}

    def never(z: np.ndarray, t: float) -> np.ndarray:
        raise AssertionError("the model is not asked")

    with pytest.raises(ConfigError, match=r"prediction_type: found 'eps', but timestep 999 has SNR 0"):
        SAMPLERS[name](never, np.zeros((1, 1, 1, 1)), schedule, [999, 499], "eps", **options)


def test_dpmpp_2m_and_ddim_agree_without_second_order() -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    model = denoiser(schedule)
    z = np.random.default_rng(3).standard_normal((1, 1, 2, 2))
    # Two steps: the first has no history, the last returns x. Three from SNR 0: the second has no usable one.
    for timesteps in ([999, 400], [700, 10], [999, 700, 300]):
        np.testing.assert_allclose(
            dpmpp_2m(model, z, schedule, timesteps, "x0"), ddim(model, z, schedule, timesteps, "x0"), atol=1e-6
        )


def test_unic_weights_solve_their_system() -> None:
    """They integrate x = u and x = u^2 exactly over a step of h, u from 0 to 1 in lambda, in float64."""
    h, ratio = 0.7, -1.3
    u = (np.arange(20000) + 0.5) / 20000
    weight_before, weight_then = unic_weights(h, ratio)
    for degree in (1, 2):
        integral = np.mean(h * np.exp(-h * (1 - u)) * u**degree)
        slope = ratio**degree / ratio
        assert -np.expm1(-h) * (weight_before * slope + weight_then) == pytest.approx(integral, rel=1e-7)


def test_ddim_with_eta_needs_noise() -> None:
    with pytest.raises(ValueError, match="needs a source of noise"):
        ddim(denoiser(FINE), np.zeros((1, 1, 1, 1)), FINE, [1024, 0], eta=0.5)


def test_configuration_and_registry_name_the_same_samplers() -> None:
    assert get_args(SamplingConfig.model_fields["sampler"].annotation) == tuple(SAMPLERS)
    assert set(SAMPLERS) >= STOCHASTIC


def test_eta_that_a_sampler_would_ignore_is_refused() -> None:
    assert SamplingConfig(sampler="ddim", eta=0.5).eta == 0.5
    with pytest.raises(ValueError, match=r"eta is 0\.5, but unipc has none; leave it 0 or use ddim"):
        SamplingConfig(sampler="unipc", eta=0.5)


def test_guidance() -> None:
    conditional, unconditional = np.array([3.0]), np.array([1.0])
    assert guided(conditional, unconditional, 1.0) == 3
    assert guided(conditional, unconditional, 0.0) == 1
    assert guided(conditional, unconditional, 2.0) == 5


def test_guidance_rescale_restores_the_conditional_std_of_each_sample() -> None:
    rng = np.random.default_rng(5)
    conditional = rng.standard_normal((3, 4, 5, 5), np.float32)
    mixed = guided(conditional, rng.standard_normal((3, 4, 5, 5), np.float32), np.float32(7.5))
    whole = rescale_guidance(mixed, conditional, 1.0)
    np.testing.assert_allclose(whole.std(axis=(1, 2, 3)), conditional.std(axis=(1, 2, 3)), rtol=1e-5)
    np.testing.assert_allclose(rescale_guidance(mixed, conditional, 0.7), 0.7 * whole + 0.3 * mixed, rtol=1e-4)
    np.testing.assert_array_equal(rescale_guidance(mixed, conditional, 0.0), mixed)
    assert whole.dtype == np.float32
    nothing = np.zeros_like(mixed)
    np.testing.assert_array_equal(rescale_guidance(nothing, conditional, 0.7), nothing)
