"""Turns `--sweep KEY=a,b` into the overrides of each run of a sweep. It is pure."""

import json
from collections.abc import Sequence
from itertools import product

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError

_MOST_RUNS = 10_000  # the runs are called 0000 to 9999


def sweep_overrides(sweeps: Sequence[str]) -> list[list[str]]:
    """Return the recipe's overrides of each run: all combinations, the last key changing fastest.

    sweeps: each KEY=a,b, where the values are YAML separated by commas

    Raises ConfigError: when one is not of that form, names a key twice, or makes too many runs.
    """
    choices = [_choices(each) for each in sweeps]
    keys = [key for key, _ in choices]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"--sweep: found {twice} twice", "give all its values at once")
    runs = [list(each) for each in product(*(values for _, values in choices))]
    if len(runs) > _MOST_RUNS:
        raise ConfigError(f"--sweep: found {len(runs)} combinations ({_MOST_RUNS} are the most)", "submit fewer")
    return runs


def _choices(sweep: str) -> tuple[str, list[str]]:
    key, equals, text = sweep.partition("=")
    if not equals or not key or key.startswith("cluster."):
        raise ConfigError(f"--sweep: found {sweep!r} (it is written KEY=a,b with a key of the recipe)")
    try:
        values = yaml_dialect.parse(f"[{text}]")
    except ValueError as error:
        raise ConfigError(f"--sweep: {key}: {error}") from None
    if not isinstance(values, list) or not values:
        raise ConfigError(f"--sweep: found {sweep!r} (it names no value)")
    return key, [f"{key}={json.dumps(value)}" for value in values]
