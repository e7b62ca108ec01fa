"""Samplers against diffusers' schedulers on a nonlinear model (tests/golden/make_samplers.py).

Compared are the latents that every model call gets and the result, within 1e-4. Where ours differs on purpose, a test
reproduces what diffusers does and states the difference.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from golden.sampler_model import noise, predict
from support import GOLDEN
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.diffusion.parameterization import noise_from_v, noise_from_x, x_from_noise
from vpred_train.diffusion.samplers.registry import SAMPLERS, STOCHASTIC
from vpred_train.diffusion.samplers.single_step import ddim
from vpred_train.diffusion.schedule import Schedule, make_schedule

GOLDEN = np.load(GOLDEN / "samplers.npz")
CASES: dict[str, tuple[str, str, str, int, float]] = json.loads(str(GOLDEN["cases"]))
TOLERANCE = 1e-4

PREVIOUS_TIMESTEP = {"ddim_15"}
CLAMPED = {"dpmpp_2m_zero", "unipc_zero", "euler_zero", "euler_ancestral_zero"}
ROUNDED = {"ddim_zero_eta"}
AVERAGES_V = {"plms_v"}
# These end elsewhere: DPM-Solver's scheduler at t = 0, since it cannot go to sigma = 0; PLMS see below.
OTHER_END = {"dpm_solver_2_v", "dpm_solver_2_eps", "plms_eps"}
STANDARD = make_schedule(DiffusionConfig())
ZERO_SNR = make_schedule(DiffusionConfig(zero_terminal_snr=True))


def timesteps_of(case: str) -> list[float]:
    """The timesteps visited; diffusers lists one twice where it calls the model twice."""
    listed = GOLDEN[f"{case}/timesteps"].tolist()
    return [t for t, before in zip(listed, [None, *listed], strict=False) if t != before]


def sampled(case: str, schedule: Schedule, prediction_type: str | None = None) -> tuple[list[np.ndarray], np.ndarray]:
    """Ours from the same z_T: what the model got, and x."""
    sampler, told, _, _, eta = CASES[case]
    prediction_type = prediction_type or told
    states: list[np.ndarray] = []

    def model(z: np.ndarray, t: float) -> np.ndarray:
        states.append(z)
        return predict(z, t, prediction_type)

    options: dict[str, Any] = {"noise": noise} if sampler in STOCHASTIC else {}
    if sampler == "ddim":
        options["eta"] = eta
    z = GOLDEN[f"{case}/states"][0]
    x = SAMPLERS[sampler](model, z, schedule, timesteps_of(case), prediction_type, **options)
    assert x.dtype == np.float32
    return states, x


def largest(found: Sequence[np.ndarray] | np.ndarray, expected: np.ndarray) -> float:
    assert np.shape(found) == expected.shape
    return float(np.abs(np.asarray(found) - expected).max())


@pytest.mark.parametrize("case", sorted(set(CASES) - PREVIOUS_TIMESTEP - CLAMPED - ROUNDED - AVERAGES_V))
def test_equal_to_diffusers(case: str) -> None:
    states, x = sampled(case, ZERO_SNR if "zero" in case else STANDARD)
    assert largest(states, GOLDEN[f"{case}/states"]) < TOLERANCE
    if case not in OTHER_END:
        assert largest(x, GOLDEN[f"{case}/final"]) < TOLERANCE


def test_every_sampler_is_compared() -> None:
    assert {sampler for sampler, *_ in CASES.values()} == set(SAMPLERS)


def test_ddim_goes_to_the_timestep_that_the_model_is_told_next() -> None:
    """diffusers goes to t - floor(T / N), which is not the next timestep when N does not divide T."""
    states, x = sampled("ddim_15", STANDARD)
    theirs, timesteps = GOLDEN["ddim_15/states"], timesteps_of("ddim_15")
    for step, t in enumerate(timesteps[:-1]):
        alpha, sigma = STANDARD.alpha[t], STANDARD.sigma[t]
        following = t - 1000 // 15
        v = predict(theirs[step], t, "v")
        reached = STANDARD.alpha[following] * (alpha * theirs[step] - sigma * v)
        reached = reached + STANDARD.sigma[following] * noise_from_v(theirs[step], v, alpha, sigma)
        assert largest(reached, theirs[step + 1]) < TOLERANCE
    assert [t - 1000 // 15 for t in timesteps[:-1]] != timesteps[1:]
    assert 1e-3 < largest(states, theirs) < 1e-2
    # The last step ends at timestep 0 instead of sigma = 0: t_14 = 66 = floor(1000 / 15).
    assert 0.05 < largest(x, GOLDEN["ddim_15/final"]) < 0.1


@pytest.mark.parametrize("case", sorted(CLAMPED))
def test_zero_terminal_snr_is_exact_and_not_nearly(case: str) -> None:
    """diffusers sets the last alpha_bar to 2^-24, and its multistep schedulers then extrapolate over that interval."""
    alpha, sigma = ZERO_SNR.alpha.copy(), ZERO_SNR.sigma.copy()
    alpha[-1], sigma[-1] = 2**-12, np.sqrt(1 - 2**-24)
    clamped, clamped_x = sampled(case, Schedule(alpha, sigma))
    assert largest(clamped, GOLDEN[f"{case}/states"]) < TOLERANCE
    assert largest(clamped_x, GOLDEN[f"{case}/final"]) < TOLERANCE

    exact, _ = sampled(case, ZERO_SNR)
    first = largest(exact[1], clamped[1])
    if case == "euler_ancestral_zero":
        # The exact step forgets z_T; the clamped one keeps sigma'^2 / (alpha' 4096) of it.
        assert 1e-3 < first < 2e-2
    else:
        assert TOLERANCE < first < 2e-4
    if case in {"dpmpp_2m_zero", "unipc_zero"}:
        assert 5e-4 < largest(exact[2], clamped[2]) < 1e-3


def test_full_noise_from_snr_zero_keeps_nothing_of_z() -> None:
    """eta = 1: sigma_u^2 - sigma_eta^2 is zero; diffusers' float32 rounds it to 2^-24 and keeps the root of that."""
    states, x = sampled("ddim_zero_eta", ZERO_SNR)
    theirs, z = GOLDEN["ddim_zero_eta/states"], GOLDEN["ddim_zero_eta/states"][0]
    following = timesteps_of("ddim_zero_eta")[1]
    closed_form = ZERO_SNR.alpha[following] * predict(z, 999, "x0") + ZERO_SNR.sigma[following] * noise(z.shape, 0)
    assert largest(states[1], closed_form) < 1e-6
    assert largest(closed_form + 2**-12 * z, theirs[1]) < 1e-6
    assert 4e-4 < largest(states[1], theirs[1]) < 5e-4
    assert largest(x, GOLDEN["ddim_zero_eta/final"]) < TOLERANCE


def test_plms_is_the_same_method_for_every_prediction_type() -> None:
    """diffusers averages v of different times as if it were noise; PNDM (eq. 12) averages noise."""
    expected, x = sampled("plms_eps", STANDARD)
    for prediction_type in ("v", "x0"):
        states, same_x = sampled("plms_eps", STANDARD, prediction_type)
        assert largest(states, np.stack(expected)) < TOLERANCE
        assert largest(same_x, x) < TOLERANCE
    assert 0.02 < largest(expected, GOLDEN["plms_v/states"]) < 0.1


def test_plms_ends_with_the_prediction_of_x() -> None:
    """diffusers' last step takes x from the noise extrapolated past the last timestep, not from the model's own."""
    states, timesteps = GOLDEN["plms_eps/states"], timesteps_of("plms_eps")
    t = timesteps[-1]
    # States 0 and 2 ... are those of the timesteps; state 1 is the improved Euler's trial.
    noises = [predict(z, u, "eps") for z, u in zip(states[-4:], timesteps[-4:], strict=True)]
    extrapolated = (55 * noises[3] - 59 * noises[2] + 37 * noises[1] - 9 * noises[0]) / 24
    level = STANDARD.at(t)
    theirs = x_from_noise(states[-1], extrapolated, *level)
    assert largest(theirs, GOLDEN["plms_eps/final"]) < TOLERANCE
    _, x = sampled("plms_eps", STANDARD)
    assert largest(x, x_from_noise(states[-1], noises[3], *level)) < TOLERANCE
    assert largest(x, GOLDEN["plms_eps/final"]) > 0.1


def test_prediction_types_of_one_model_give_one_image() -> None:
    z, timesteps = noise((2, 2, 2, 3), -1), [999, 750, 400, 200, 50]
    for name, sampler in SAMPLERS.items():
        options = {"noise": noise} if name in STOCHASTIC else {}
        images = [
            sampler(lambda z, t, kind=kind: predict(z, t, kind), z, STANDARD, timesteps, kind, **options)
            for kind in ("v", "eps", "x0")
        ]
        assert largest(images[1:], np.stack([images[0]] * 2)) < TOLERANCE, name


def test_euler_is_ddim_in_the_variables_of_karras() -> None:
    z, timesteps = noise((2, 2, 2, 3), -1).astype(np.float64), [999, 600, 300, 100]

    def model(z: np.ndarray, t: float) -> np.ndarray:
        return predict(z, t, "x0")

    y = z / STANDARD.at(999).alpha
    for t, following in pairwise(timesteps):
        now, then = STANDARD.at(t), STANDARD.at(following)
        slope = noise_from_x(now.alpha * y, model(now.alpha * y, t), *now)
        y = y + (then.noise_to_signal - now.noise_to_signal) * slope
    expected = model(STANDARD.at(100).alpha * y, 100)
    assert largest(SAMPLERS["euler"](model, z, STANDARD, timesteps, "x0"), expected) < 1e-6
    assert largest(ddim(model, z, STANDARD, timesteps, "x0"), expected) < 1e-6
