"""The runs of a sweep."""

import pytest

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.submit.sweep import sweep_overrides


def test_sweeps_are_combined_with_the_last_key_fastest():
    runs = sweep_overrides(["seed=1,2", "optimizer.learning_rate=1e-4,2e-4"])
    assert runs == [
        [f"seed={seed}", f"optimizer.learning_rate={rate}"] for seed in (1, 2) for rate in ("0.0001", "0.0002")
    ]


@pytest.mark.parametrize("text", ["[1, 2],[3]", "a b,'c,d'", "true,null", "{x: 1},2.5"])
def test_values_are_yaml(text):
    runs = sweep_overrides([f"key={text}"])
    values = [yaml_dialect.parse(each.partition("=")[2]) for (each,) in runs]
    assert values == yaml_dialect.parse(f"[{text}]")


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["seed"], "--sweep: found 'seed' (it is written KEY=a,b"),
        (["=1,2"], "--sweep: found '=1,2'"),
        (["seed="], "--sweep: found 'seed=' (it names no value)"),
        (["seed=[1"], "--sweep: seed: "),
        (["cluster.workers_per_host=1,2"], "with a key of the recipe"),
        (["seed=1", "seed=2"], "--sweep: found seed twice"),
        ([f"{key}={','.join(map(str, range(101)))}" for key in "ab"], "--sweep: found 10201 combinations"),
    ],
)
def test_faulty_sweeps_are_refused(sweeps, message):
    with pytest.raises(ConfigError) as caught:
        sweep_overrides(sweeps)
    assert message in str(caught.value)
