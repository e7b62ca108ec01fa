"""The moving averages against float64 sums over the whole trajectory, and their decays against published figures."""

import math

import numpy as np
import pytest

from vpred_train.config.optimizer import EmaConfig
from vpred_train.distributed.flat_arrays import BLOCK_ELEMENTS
from vpred_train.ema.profiles import average_, decays, gamma_of


def test_decays_at_single_points() -> None:
    config = EmaConfig(profiles=("constant", "mindone"), decay=0.9)
    assert [decays(config, n, 0, 1)["constant"] for n in (0, 8, 1000)] == [0.1, 0.5, 0.9]
    for n in (1, 2000, 100_000):
        assert decays(config, n, 0, 1)["mindone"] == pytest.approx(0.9 * (1 - math.exp(-n / 2000)), rel=1e-12)
    power = EmaConfig(profiles=("power",), sigma_rel=(0.1,))
    assert list(decays(power, 1, 0, 16).values()) == [0.0]  # the start is forgotten
    assert decays(power, 7, 96, 112)["power_0.1"] == pytest.approx((1 - 16 / 112) ** (6.94 + 1), rel=1e-3)


@pytest.mark.parametrize(
    ("sigma_rel", "gamma"), [(0.05, 16.97), (0.10, 6.94), (0.15, 3.56), (0.20, 1.83), (0.25, 0.72)]
)
def test_exponents_have_the_width_asked_for(sigma_rel: float, gamma: float) -> None:
    """The published table, and the standard deviation of t^gamma on [0, 1] by quadrature."""
    assert gamma_of(sigma_rel) == pytest.approx(gamma, abs=0.005)
    t = (np.arange(200_000) + 0.5) / 200_000
    weights = t ** gamma_of(sigma_rel)
    mean = np.average(t, weights=weights)
    assert math.sqrt(np.average((t - mean) ** 2, weights=weights)) == pytest.approx(sigma_rel, rel=1e-6)


def test_an_average_equals_its_recursion_in_float64_and_by_ranges() -> None:
    rng = np.random.default_rng(1)
    average = rng.standard_normal(BLOCK_ELEMENTS + 3).astype(np.float32)
    parts, expected = average.copy(), average.astype(np.float64)
    for _ in range(20):
        weights = rng.standard_normal(average.size).astype(np.float32)
        average_(average, weights, 0.9)
        for own in (slice(0, 77), slice(77, None)):
            average_(parts[own], weights[own], 0.9)
        expected = 0.9 * expected + 0.1 * weights
    np.testing.assert_allclose(average, expected, atol=1e-6)
    np.testing.assert_array_equal(parts, average)


def test_power_averages_are_sums_weighted_by_powers_of_time(operations: str) -> None:
    """Each step's weights count with the integral of t^gamma over its samples (midpoints), also after skipped steps."""
    config = EmaConfig(profiles=("power",), sigma_rel=(0.05, 0.1, 0.25))
    rng = np.random.default_rng(2)
    times = 16 * np.delete(np.arange(1, 301), [0, 120, 121, 250])  # steps that were not finite
    trajectory = np.cumsum(rng.standard_normal((len(times), 50)), axis=0).astype(np.float32)
    averages = {name: np.ones(50, np.float32) for name in config.names}
    starts = np.array([0, *times[:-1]])
    for updates, (since, now, weights) in enumerate(zip(starts, times, trajectory, strict=True), start=1):
        for name, decay in decays(config, updates, int(since), int(now)).items():
            average_(averages[name], weights, decay)
    for sigma_rel, name in zip(config.sigma_rel, config.names, strict=True):
        midpoints = starts[:, None] + (times - starts)[:, None] * (np.arange(400) + 0.5) / 400
        shares = (midpoints ** gamma_of(sigma_rel)).mean(axis=1) * (times - starts)
        expected = shares @ trajectory.astype(np.float64) / shares.sum()
        np.testing.assert_allclose(averages[name], expected, rtol=1e-5, atol=1e-5)


def test_names_and_the_one_in_use() -> None:
    config = EmaConfig(profiles=("mindone", "power"), sigma_rel=(0.075, 0.1), use="power_0.1")
    assert config.names == ("mindone", "power_0.075", "power_0.1")
    assert (config.used, EmaConfig().used) == ("power_0.1", "constant")
