"""Recipes with any numbers: refused in one line, or usable where the numbers are used; written and read back equal."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.keyed_random import sample_generator
from launcher.contract.config import ConfigError, build_document, dump_yaml, load_document
from support import CHECKOUT
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.engine.objective import Objective
from vpred_train.optim.learning_rate import learning_rate

DEMO = CHECKOUT / "vpred_train" / "recipes" / "tiny_emoji.yaml"
OPTIONAL = """
checkpoint: {every_epochs: 1, every_minutes: 1.0, keep_every_samples: 800, mindone_unit_samples: 100, keep_best: 1}
validation: {every_samples: 800, count: 4, bins: 6, draws: 1, batch_size: 4, seed: 0}
previews: {every_samples: 800, count: 2, seed: 4}
objective: {offset_noise: 0.1, input_perturbation: 0.1}
precision: {loss_scaling: dynamic, init_loss_scale: 1024.0, min_loss_scale: 1.0, loss_scale_window_steps: 10}
"""


def demo() -> dict[str, Any]:
    raw: dict[str, Any] = yaml.safe_load(DEMO.read_text())
    for section, keys in yaml.safe_load(OPTIONAL).items():
        raw[section] = raw.get(section, {}) | keys
    raw["data"]["path"] = "."
    return raw


def leaves(value: Any, place: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(value, dict):
        return [place]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, (*place, key))]


PLACES = leaves(demo())
VALUES = st.one_of(
    st.sampled_from([0, 1, -1, 2, 7, 1 << 20, 1 << 31, 1 << 53, 1 << 63, (1 << 64) - 1, 1 << 64, 10**40]),
    st.sampled_from([0.0, 1.0, 0.5, 1e-8, 1e-30, 1e-45, 1e-308, 1e30, 1e39, 1e308, float("inf"), float("nan"), -0.0]),
    st.sampled_from([None, True, "", "x", "1", [], [1], {}, {"a": 1}, "\U0001f408", [0.9, 0.999], [1, 2]]),
    st.integers(-5, 5000),
    st.floats(0, 1),
)


@settings(max_examples=1200, derandomize=True, deadline=None)
@given(changes=st.dictionaries(st.sampled_from(PLACES), VALUES, min_size=1, max_size=3))
def test_a_recipe_with_any_numbers_is_refused_or_can_be_used(tmp_path_factory: Any, changes: dict[Any, Any]) -> None:
    raw = deepcopy(demo())
    for place, value in changes.items():
        section = raw
        for key in place[:-1]:
            section = section[key] if isinstance(section[key], dict) else {}
        section[place[-1]] = value
    try:
        config = build_document(TrainConfig, raw, Path("r.yaml"))
    except ConfigError as error:
        assert all(line.startswith("r.yaml: ") for line in str(error).splitlines())
        return
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(dump_yaml(config), encoding="utf-8")
    assert load_document(TrainConfig, path) == config
    for seen in (0, config.global_batch, config.total_samples // 2, config.total_samples):
        assert np.isfinite(learning_rate(config, seen))
    if config.diffusion.timesteps <= 5000:
        schedule = make_schedule(config.diffusion)
        assert np.isfinite(schedule.alpha).all() and (schedule.sigma > 0).all()
        assert (schedule.alpha[:-1] > 0).all() and (schedule.alpha[-1] > 0 or config.diffusion.zero_terminal_snr)
        assert np.isfinite(Objective(config).weights).all()
    sample_generator(config.seed, "diffusion", 0, 1).random()
    assert config.validation is not None and config.previews is not None
    sample_generator(config.validation.seed, "validation", 0, 1).random()
    np.random.default_rng(config.sampling.seed + config.final_samples).random()
