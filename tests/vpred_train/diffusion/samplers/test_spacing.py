"""Timestep tables against diffusers (tests/golden/make_samplers.py), and Karras' spacing in closed form."""

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from support import GOLDEN
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.samplers.spacing import (
    SPACINGS,
    karras_timesteps,
    leading_timesteps,
    linspace_timesteps,
    spaced_timesteps,
    trailing_timesteps,
)
from vpred_train.diffusion.schedule import make_schedule

GOLDEN = np.load(GOLDEN / "spacings.npz")
SCHEDULE = make_schedule(DiffusionConfig())
EVEN = {"trailing": trailing_timesteps, "leading": leading_timesteps, "linspace": linspace_timesteps}


@pytest.mark.parametrize("spacing", sorted(EVEN))
@pytest.mark.parametrize("steps", [2, 7, 15, 20, 50, 333, 999, 1000])
def test_even_spacings_equal_those_of_diffusers(spacing: str, steps: int) -> None:
    assert EVEN[spacing](1000, steps) == GOLDEN[f"ddim_{spacing}_{steps}"].tolist()
    dpm = GOLDEN[f"dpm_{spacing}_{steps}"].tolist()
    if spacing == "trailing":
        assert EVEN[spacing](1000, steps) == dpm
    elif steps < 1000:
        # DPM-Solver's scheduler counts the end point: n + 1 timesteps, of which the cleanest is left out.
        assert EVEN[spacing](1000, steps + 1)[:-1] == dpm


@pytest.mark.parametrize("steps", [2, 15, 50])
def test_karras_equals_diffusers(steps: int) -> None:
    timesteps = karras_timesteps(SCHEDULE, steps)
    ratios = [SCHEDULE.at(t).noise_to_signal for t in timesteps]
    # Both are limited by the float32 of alphas_cumprod there, which 1 - alpha_bar amplifies near t = 0.
    np.testing.assert_allclose(ratios, GOLDEN[f"karras_ratios_{steps}"], rtol=2e-5)
    np.testing.assert_allclose(timesteps, GOLDEN[f"karras_{steps}"], atol=2e-3)


def test_karras_ratios_are_even_in_their_seventh_root() -> None:
    roots = [SCHEDULE.at(t).noise_to_signal ** (1 / 7) for t in karras_timesteps(SCHEDULE, 12)]
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 11, rtol=1e-6)
    assert SCHEDULE.at(999).noise_to_signal == pytest.approx(roots[0] ** 7)
    assert SCHEDULE.at(0).noise_to_signal == pytest.approx(roots[-1] ** 7)


def test_karras_takes_an_infinite_ratio_as_a_step_of_its_own() -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=True))
    timesteps = karras_timesteps(schedule, 15)
    assert timesteps[0] == 999
    assert timesteps[1] == pytest.approx(trailing_timesteps(1000, 15)[1])
    roots = [schedule.at(t).noise_to_signal ** (1 / 7) for t in timesteps[1:]]
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 13, rtol=1e-6)
    assert karras_timesteps(schedule, 1) == [999]


def test_levels_between_timesteps() -> None:
    level = SCHEDULE.at(400.25)
    assert level.alpha**2 + level.sigma**2 == pytest.approx(1)
    below, above = SCHEDULE.at(400).half_log_snr, SCHEDULE.at(401).half_log_snr
    assert level.half_log_snr == pytest.approx(0.75 * below + 0.25 * above)
    assert SCHEDULE.at(400.0) == (SCHEDULE.alpha[400], SCHEDULE.sigma[400])


@pytest.mark.parametrize("spacing", sorted(SPACINGS))
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_timesteps_decrease_and_stay_in_the_table(spacing: str, zero_terminal_snr: bool) -> None:
    schedule = make_schedule(DiffusionConfig(zero_terminal_snr=zero_terminal_snr))
    for steps in (1, 2, 3, 15, 64, 500, 1000):
        timesteps = spaced_timesteps(spacing, schedule, steps)
        assert len(timesteps) == steps
        assert 0 <= timesteps[-1] <= timesteps[0] <= 999
        assert (np.diff(timesteps) < 0).all()


def test_more_steps_than_timesteps_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"sampling\.steps: found 1001, but the schedule has 1000 timesteps"):
        spaced_timesteps("trailing", SCHEDULE, 1001)


def test_configuration_and_registry_name_the_same_spacings() -> None:
    choices = SamplingConfig.model_json_schema()["properties"]["timestep_spacing"]["enum"]
    assert choices == list(SPACINGS)
