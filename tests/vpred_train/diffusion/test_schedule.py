"""Schedule and parameterization against values computed independently in float64."""

import numpy as np
import pytest

from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.diffusion.parameterization import noise_from_v, v_target, x_from_v
from vpred_train.diffusion.schedule import alphas_cumprod, make_schedule


def reference_cumprod() -> np.ndarray:
    product, values = 1.0, []
    for index in range(1000):
        root = 0.00085**0.5 + (0.012**0.5 - 0.00085**0.5) * index / 999
        product *= 1 - root * root
        values.append(product)
    return np.array(values)


def test_sd2_schedule_has_its_published_values() -> None:
    schedule = make_schedule(DiffusionConfig())
    np.testing.assert_allclose(alphas_cumprod(DiffusionConfig()), reference_cumprod(), rtol=1e-12)
    assert schedule.alpha.dtype == schedule.sigma.dtype == np.float32
    # Stable Diffusion 2: alpha_bar and SNR at both ends, and where SNR falls through 5 and 1.
    assert schedule.alpha[0] ** 2 == pytest.approx(0.99915, abs=1e-6)
    assert schedule.alpha[-1] ** 2 == pytest.approx(0.0046601, rel=1e-4)
    assert schedule.snr[0] == pytest.approx(1175.5, rel=1e-4)
    assert schedule.snr[-1] == pytest.approx(0.0046819, rel=1e-4)
    assert np.argmin(np.abs(schedule.snr - 5)) == 146
    assert np.argmin(np.abs(schedule.snr - 1)) == 354


def test_zero_terminal_snr_is_exactly_zero_and_keeps_the_first() -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    assert schedule.alpha[-1] == 0
    assert schedule.sigma[-1] == 1
    roots = np.sqrt(reference_cumprod())
    expected = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    np.testing.assert_allclose(schedule.alpha, expected, rtol=1e-6, atol=1e-9)
    assert schedule.alpha[0] == np.float32(roots[0])


def test_sigma_does_not_lose_precision_near_zero_noise() -> None:
    exact = np.sqrt(1 - reference_cumprod())
    np.testing.assert_allclose(make_schedule(DiffusionConfig()).sigma, exact, rtol=1e-6)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, np.pi / 2])
def test_conversions_invert_each_other(angle: float) -> None:
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 5, 3))
    alpha, sigma = np.cos(angle), np.sin(angle)
    z = alpha * x + sigma * noise
    v = v_target(x, noise, alpha, sigma)
    np.testing.assert_allclose(x_from_v(z, v, alpha, sigma), x, atol=1e-14)
    np.testing.assert_allclose(noise_from_v(z, v, alpha, sigma), noise, atol=1e-14)
    # v is the derivative of z with respect to the angle.
    step = 1e-6
    later = np.cos(angle + step) * x + np.sin(angle + step) * noise
    np.testing.assert_allclose((later - z) / step, v, atol=1e-5)
