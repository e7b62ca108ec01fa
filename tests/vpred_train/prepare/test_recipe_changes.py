"""What of a recipe may change when a run goes on: every key has its kind, and refusals name key, values and remedy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from launcher.contract.config import ConfigError, dump_yaml
from launcher.contract.run_dir import RunDir
from vpred_train.config.train import TrainConfig
from vpred_train.config.validation import PreviewsConfig, ValidationConfig
from vpred_train.config.weights import LoraConfig, PretrainedConfig
from vpred_train.prepare.recipe_changes import Change, changes, check_run_dir, recorded_recipe

MACHINE = {"data.path", "data.workers", "data.prefetch_batches", "pretrained.path", "validation.path"}
LOGGED = {
    "total_samples",
    "gradient_accumulation_steps",
    "log_every_steps",
    "final_samples",
    "max_nonfinite_steps",
    "recompute",
    "data.bad_samples",
    "data.cache",
    "ema.use",
    "ema.snapshot_every_samples",
    "ema.snapshot_dtype",
    "validation.every_samples",
    "validation.draws",
    "validation.batch_size",
}
LOGGED_SECTIONS = ("checkpoint.", "sampling.", "previews.")


def leaves(section: BaseModel, prefix: str = "") -> Iterator[str]:
    for name in type(section).model_fields:
        value = getattr(section, name)
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def altered(config: BaseModel, key: str) -> Any:
    """The section with another value at `key`, valid or not."""
    name, _, rest = key.partition(".")
    return config.model_copy(update={name: altered(getattr(config, name), rest) if rest else "another"})


@pytest.fixture
def config(train_config: TrainConfig) -> TrainConfig:
    """With every section."""
    sections = {
        "pretrained": PretrainedConfig(path=Path("weights")),
        "lora": LoraConfig(),
        "validation": ValidationConfig(every_samples=8, count=2),
        "previews": PreviewsConfig(every_samples=8, count=2),
    }
    return train_config.model_copy(update=sections)


def test_every_key_has_the_kind_that_it_should(config: TrainConfig) -> None:
    keys = [key for key in leaves(config) if key != "total_samples"]  # by its value: below
    assert len(keys) > 90
    for key in keys:
        logged = key in LOGGED or (key.startswith(LOGGED_SECTIONS) and key != "checkpoint.node_folder")
        expected = "machine" if key in MACHINE else "logged" if logged else "fixed"
        (found,) = changes(config, altered(config, key))
        assert (found.key, found.on_resume, found.after) == (key, expected, "another")
        assert bool(found.refusal) == (expected == "fixed"), key


@pytest.mark.parametrize("section", ["previews", "validation", "pretrained", "lora"])
def test_a_section_that_comes_or_goes(config: TrainConfig, section: str) -> None:
    without = config.model_copy(update={section: None})
    for before, after in ((config, without), (without, config)):
        (found,) = changes(before, after)
        assert (found.key, bool(found.refusal)) == (section, section != "previews")


def test_folders_of_a_mixture_may_move_but_weigh_the_same(train_config: TrainConfig) -> None:
    def mixture(*sources: tuple[str, float]) -> TrainConfig:
        raw = train_config.model_dump(mode="json")
        raw["data"] |= {"path": None, "sources": [{"path": path, "weight": weight} for path, weight in sources]}
        return TrainConfig.model_validate(raw)

    before = mixture(("a", 1.0), ("b", 2.0))
    assert [each.refusal for each in changes(before, mixture(("x", 1.0), ("y", 2.0)))] == ["", ""]
    (found,) = changes(before, mixture(("a", 1.0), ("b", 3.0)))
    assert found == Change("data.sources.1.weight", 2.0, 3.0, "fixed", "it never changes within a run")
    (found,) = changes(before, mixture(("a", 1.0)))
    assert found.key == "data.sources" and found.refusal


@pytest.mark.parametrize(
    ("schedule", "total", "refusal"),
    [
        ({"name": "constant"}, 160, ""),
        ({"name": "multi_step", "milestones_samples": [40]}, 160, ""),
        ({"name": "constant"}, 40, "a run gets longer, never shorter"),
        ({"name": "cosine"}, 160, "the cosine schedule depends on it"),
        ({"name": "polynomial"}, 160, "the polynomial schedule depends on it"),
    ],
)
def test_a_run_gets_longer_where_its_learning_rates_stay(
    train_config: TrainConfig, schedule: dict[str, Any], total: int, refusal: str
) -> None:
    raw = train_config.model_dump(mode="json") | {"schedule": schedule}
    before, after = (TrainConfig.model_validate(raw | {"total_samples": each}) for each in (80, total))
    (found,) = changes(before, after)
    assert found.key == "total_samples"
    assert found.refusal.startswith(refusal) and bool(found.refusal) == bool(refusal)


def test_a_refusal_names_keys_values_and_remedies(train_config: TrainConfig, tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    check_run_dir(run, train_config)  # a new one
    run.train_yaml.write_text(dump_yaml(train_config))
    check_run_dir(run, train_config)
    other = train_config.model_copy(update={"seed": 7, "global_batch": 8, "log_every_steps": 5})
    with pytest.raises(ConfigError) as caught:
        check_run_dir(run, other)
    assert str(caught.value) == (
        f"{tmp_path}: belongs to a different recipe: seed (0 there, 7 here): it never changes within a run; "
        "global_batch (4 there, 8 here): it never changes within a run; put these back, or give another "
        "--run-dir (from this run's weights: vpred-ckpt consolidate, then pretrained.path)"
    )


@pytest.mark.parametrize("content", [b"[" * 100_000, b"\xff", b"seed: [", b""])
def test_a_damaged_recipe_of_a_run_is_one_line(train_config: TrainConfig, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"train\.yaml: "):
        check_run_dir(RunDir(tmp_path), train_config)


def test_a_recipe_of_an_older_version_lacks_keys_that_have_defaults_now(
    train_config: TrainConfig, tmp_path: Path
) -> None:
    text = dump_yaml(train_config)
    older = yaml.safe_load(text)
    del older["previews"], older["ema"]["snapshot_dtype"], older["model"]["text_encoder"]["padding"]
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(older))
    check_run_dir(RunDir(tmp_path), train_config)
    assert recorded_recipe(text) == train_config
