"""Loss weights against the formulas of their papers on each prediction, and published figures."""

import inspect
import math
from collections.abc import Callable
from typing import get_args

import numpy as np
import pytest

from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.objective import READ_GAMMA, VANISH_AT_ZERO_SNR, ObjectiveConfig, Weight
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.diffusion.timesteps import timestep_cdf
from vpred_train.diffusion.weighting import UNIFORM, WEIGHTS, image_weights, loss_weights, weight_mass

# The weight of v and of the noise as functions of the squared alpha a and sigma b, which have neither ratio nor 1 + s.
ON_V_AND_NOISE: dict[Weight, tuple[Callable[[float, float], float], Callable[[float, float], float]]] = {
    "uniform_v": (lambda a, b: 1.0, lambda a, b: 1 / a),
    "eps_simple": (lambda a, b: a, lambda a, b: 1.0),
    "x0_simple": (lambda a, b: b, lambda a, b: b / a),
    "snr_trunc": (lambda a, b: max(a, b), lambda a, b: max(1, b / a)),
    "min_snr": (lambda a, b: min(a, 5 * b), lambda a, b: min(1, 5 * b / a)),
    "soft_min_snr": (lambda a, b: 5 * a * b / (a + 5 * b), lambda a, b: 5 * b / (a + 5 * b)),
    "debiased": (lambda a, b: math.sqrt(a * b), lambda a, b: math.sqrt(b / a)),
    "p2": (lambda a, b: a * b, lambda a, b: b),
}
ZERO_SNR = DiffusionConfig(zero_terminal_snr=True)


def test_the_names_of_the_recipe_are_those_of_the_registry() -> None:
    assert {"uniform", *WEIGHTS} == set(get_args(Weight))
    assert {name for name in WEIGHTS if "gamma" in inspect.signature(WEIGHTS[name]).parameters} == set(READ_GAMMA)
    assert {name for name in WEIGHTS if WEIGHTS[name](np.zeros(1))[0] == 0} == set(VANISH_AT_ZERO_SNR)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_weights_have_their_closed_forms_on_every_prediction(weight: Weight) -> None:
    config = ObjectiveConfig(weight=weight)
    squared_alpha = np.concatenate((np.geomspace(1e-6, 0.5, 40), 1 - np.geomspace(0.5, 1e-6, 40)))
    snr = squared_alpha / (1 - squared_alpha)
    levels = [(float(a), 1 - float(a)) for a in squared_alpha]
    on_v, on_noise = ON_V_AND_NOISE[weight]
    for kind, expected in (
        ("v", [on_v(a, b) for a, b in levels]),
        ("eps", [on_noise(a, b) for a, b in levels]),
        ("x0", [on_v(a, b) / b for a, b in levels]),
    ):
        np.testing.assert_allclose(loss_weights(config, kind, snr), expected, rtol=1e-9, err_msg=kind)


@pytest.mark.parametrize("kind", UNIFORM)
def test_a_weighted_error_is_the_same_objective_whatever_is_predicted(kind: PredictionType) -> None:
    """Errors of one estimate, seen as v, noise and image by way of z_t, all weigh alike."""
    rng = np.random.default_rng(0)
    angle = rng.uniform(0.05, 1.5, 50)
    alpha, sigma = np.cos(angle), np.sin(angle)
    z, v, error = rng.standard_normal((3, 50))
    estimates = {
        "v": (v, v + error),
        "eps": (sigma * z + alpha * v, sigma * z + alpha * (v + error)),
        "x0": (alpha * z - sigma * v, alpha * z - sigma * (v + error)),
    }
    first, second = estimates[kind]
    config = ObjectiveConfig(weight="min_snr")
    weighted = loss_weights(config, kind, (alpha / sigma) ** 2) * (first - second) ** 2
    np.testing.assert_allclose(weighted, np.minimum(alpha**2, 5 * sigma**2) * error**2, rtol=1e-9)


def test_the_default_is_exactly_one_on_what_is_predicted() -> None:
    for kind in UNIFORM:
        schedule = make_schedule(DiffusionConfig(zero_terminal_snr=kind != "eps"))
        assert (loss_weights(ObjectiveConfig(), kind, schedule.snr) == 1).all()


@pytest.mark.parametrize("kind", ["v", "x0"])
def test_at_zero_snr_weights_are_their_right_limits(kind: PredictionType) -> None:
    zero, limit = np.zeros(1), np.full(1, 1e-300)
    for weight in WEIGHTS:
        config = ObjectiveConfig(weight=weight)
        expected = loss_weights(config, kind, limit)
        np.testing.assert_allclose(loss_weights(config, kind, zero), expected, rtol=1e-12, atol=1e-149)
    assert loss_weights(ObjectiveConfig(weight="uniform_v"), kind, zero) == 1
    assert loss_weights(ObjectiveConfig(weight="x0_simple"), kind, zero) == 1
    assert loss_weights(ObjectiveConfig(weight="min_snr", terminal_floor=0.3), kind, zero) == 0.3
    with pytest.raises(ValueError, match="SNR falls to 0"):
        loss_weights(ObjectiveConfig(), "eps", zero)


def test_the_terminal_floor_leaves_low_noise_alone() -> None:
    snr = make_schedule(ZERO_SNR).snr
    plain, floored = (
        loss_weights(ObjectiveConfig(weight="min_snr", terminal_floor=floor), "v", snr) for floor in (0.0, 0.25)
    )
    np.testing.assert_array_equal(floored[snr >= 0.25], plain[snr >= 0.25])
    np.testing.assert_allclose(floored[snr < 0.25], 0.25 / (1 + snr[snr < 0.25]), rtol=1e-12)
    # A floor of 1 makes the epsilon objective the truncated one.
    truncated = loss_weights(ObjectiveConfig(weight="snr_trunc"), "v", snr)
    np.testing.assert_array_equal(
        loss_weights(ObjectiveConfig(weight="eps_simple", terminal_floor=1.0), "v", snr), truncated
    )


def test_min_snr_has_its_known_figures_with_zero_terminal_snr() -> None:
    """What the weight leaves of high noise on SD2's schedule: the reason for the terminal floor."""
    snr = make_schedule(ZERO_SNR).snr
    assert (int(np.argmin(np.abs(snr - 5))), int(np.argmin(np.abs(snr - 1)))) == (138, 337)
    weights = loss_weights(ObjectiveConfig(weight="min_snr"), "v", snr)
    assert [f"{weights[t]:.2g}" for t in (600, 800, 900, 950, 999)] == ["0.13", "0.018", "0.003", "0.00059", "0"]
    shares = [100 * weights[t:].sum() / weights.sum() for t in (600, 800, 900)]
    assert [f"{share:.2f}" for share in shares] == ["4.77", "0.36", "0.03"]


def test_gamma_changes_what_reads_it() -> None:
    snr = np.array([0.5, 2.0, 30.0])
    figures = {"min_snr": [0.5, 2, 3], "soft_min_snr": snr * 3 / (snr + 3), "p2": snr / (1 + snr) ** 3}
    assert set(figures) == set(READ_GAMMA)
    for weight in READ_GAMMA:
        config = ObjectiveConfig(weight=weight, gamma=3.0)
        np.testing.assert_allclose(image_weights(config, "v", snr), figures[weight], rtol=1e-12)


@pytest.mark.parametrize("distribution", ["uniform", "logit_normal"])
def test_the_weight_mass_is_a_sum_over_timesteps(distribution: str) -> None:
    config = ObjectiveConfig.model_validate({"weight": "debiased", "timestep_distribution": distribution})
    snr = make_schedule(ZERO_SNR).snr
    probabilities = np.diff(timestep_cdf(config, 1000))
    bins = weight_mass(image_weights(config, "v", snr), probabilities, snr)
    samples, weight = np.zeros(6), np.zeros(6)
    for t, s in enumerate(snr):
        place = 0 if s == 0 else int(np.clip(math.floor(math.log(s) / 2) + 3, 0, 5))
        samples[place] += probabilities[t]
        weight[place] += probabilities[t] * math.sqrt(s) / (1 + s)
    np.testing.assert_allclose([each.samples for each in bins], samples, rtol=1e-9)
    np.testing.assert_allclose([each.weight for each in bins], weight / weight.sum(), rtol=1e-9)
    assert (bins[0].low, bins[0].high, bins[-1].high) == (-math.inf, -4, math.inf)
    assert str(bins[1]) == f"[-4, -2) {100 * bins[1].weight:.2f}% ({100 * bins[1].samples:.1f}%)"
