"""Weights that predict one thing, trained to predict another: what the recipe may say, what the probe expects."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from launcher.contract.config import ConfigError, dump_yaml, load_document
from support.lora_files import FACTORS
from support.weights_files import RECORD, TINY, TINY_RECORD, random_tensors, write_tiny
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import PretrainedConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.prepare.recipe import load_recipe
from vpred_train.training import prediction_probe
from vpred_train.training.prediction_probe import Probe
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.weight_source import open_source
from vpred_train.weights.lora.files import open_lora, write_lora
from vpred_train.weights.record_lookup import record_with

EPS = DiffusionConfig(prediction_type="eps", beta_end=0.013)
RECIPE = """
total_samples: 8
global_batch: 4
data: {path: images, resolution: 16}
diffusion: {zero_terminal_snr: true, prediction_type: v}
optimizer: {learning_rate: 1e-3}
checkpoint: {every_samples: 8}
pretrained: {path: sd.safetensors, prediction_type_was: eps}
"""
WAY = "pretrained.prediction_type_was"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Beside weights whose record says that they predict the noise."""
    write_tiny(tmp_path / "v.safetensors", "stability")
    record = TINY_RECORD.model_copy(update={"diffusion": EPS})
    write_weights(tmp_path / "sd.safetensors", read_weights(tmp_path / "v.safetensors"), "stability", record)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "img_txt.csv").write_text("dir,text\n0.png,black\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path / "recipe.yaml"


def test_the_run_trains_the_recipes_type(recipe: Path) -> None:
    config = load_recipe(recipe)
    assert config.diffusion == DiffusionConfig(prediction_type="v", beta_end=0.013, zero_terminal_snr=True)
    assert config.model == TINY
    (recipe.parent / "resolved.yaml").write_text(dump_yaml(config))
    assert load_document(TrainConfig, recipe.parent / "resolved.yaml") == config
    record = record_of(config, None, 8)
    assert (record.diffusion, record.base_prediction_type) == (config.diffusion, None)
    silent = load_recipe(recipe, ["diffusion={zero_terminal_snr: true}"])  # v is what this trainer is for
    assert silent.diffusion == config.diffusion


def test_without_the_key_the_way_is_named(recipe: Path) -> None:
    with pytest.raises(
        ConfigError, match=f"found 'v', weights tell 'eps'; leave .* out, or set {WAY}=eps to train them"
    ) as caught:
        load_recipe(recipe, [f"{WAY}=null"])
    assert "\n" not in str(caught.value)


def test_the_key_must_be_true(recipe: Path) -> None:
    with pytest.raises(ConfigError, match=f"{WAY}: found 'x0', but .*sd.safetensors tells 'eps'; correct it"):
        load_recipe(recipe, [f"{WAY}=x0"])
    with pytest.raises(ConfigError, match=f"{WAY}: found 'v_prediction' .*known: v, eps, x0"):
        load_recipe(recipe, [f"{WAY}=v_prediction"])
    with pytest.raises(ConfigError, match="prediction_type_was is 'eps', but networks leaves the unet out"):
        load_recipe(recipe, ["pretrained.networks=[text_encoder, vae]"])
    same = load_recipe(recipe, [f"pretrained.path={recipe.parent / 'v.safetensors'}", f"{WAY}=v"])
    assert same.diffusion.prediction_type == "v"


def test_weights_that_tell_nothing_are_told_by_the_key(recipe: Path) -> None:
    path = recipe.parent / "sd.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"parameterization"', b'"somebody_elses_1"'))
    config = load_recipe(recipe, [f"model={TINY.model_dump_json()}", "diffusion={zero_terminal_snr: true}"])
    assert config.diffusion == DiffusionConfig(prediction_type="v", zero_terminal_snr=True)


def test_the_probe_expects_what_the_weights_predicted(
    train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[DiffusionConfig] = []
    residuals: dict[Any, float] = {"v": 0.8, "eps": 0.1, "x0": 1.2}

    def answer(_: Any, diffusion: DiffusionConfig, *__: Any) -> Probe:
        seen.append(diffusion)
        return Probe({kind: {500: residual} for kind, residual in residuals.items()})

    def check(was: Any) -> None:
        nothing: Any = None
        weights = PretrainedConfig(path=Path("sd.ckpt"), prediction_type_was=was)
        diffusion = DiffusionConfig(zero_terminal_snr=True)
        config = train_config.model_copy(update={"pretrained": weights, "diffusion": diffusion})
        prediction_probe.check_prediction(config, nothing, nothing, nothing, SingleProcess())

    monkeypatch.setattr(prediction_probe, "probe", answer)
    caplog.set_level("INFO")
    check("eps")
    assert not seen[-1].zero_terminal_snr  # eps weights were not trained to it
    assert "predict eps; they are trained to predict v" in caplog.text
    with pytest.raises(
        ConfigError, match=f"predicts eps .* but diffusion.prediction_type is v; set it to eps, or set {WAY}=eps"
    ):
        check(None)
    assert seen[-1].zero_terminal_snr
    with pytest.raises(ConfigError, match=f"predicts eps .* but {WAY} is x0; set it to eps$"):
        check("x0")
    residuals |= {"v": 0.1, "eps": 0.8}
    with pytest.raises(ConfigError, match=f"predicts v .* but {WAY} is eps; set it to v$"):
        check("eps")
    check(None)


def test_lora_that_makes_eps_weights_predict_v(tmp_path: Path) -> None:
    """Its record says v, for the weights and the factors together, and that the weights alone predict eps."""
    base = RECORD.model_copy(update={"diffusion": DiffusionConfig(prediction_type="eps"), "samples_seen": 0})
    write_weights(tmp_path / "base", random_tensors(), "stability", base)
    record = RECORD.model_copy(update={"base_xxh3": "0", "base_prediction_type": "eps"})
    write_lora(tmp_path / "lora", FACTORS, "stability", record)
    lora = open_lora(tmp_path / "lora")
    together = record_with(open_source(tmp_path / "base"), "auto", None, lora)
    assert together is not None
    assert (together.diffusion, together.base_prediction_type, together.base_xxh3) == (RECORD.diffusion, None, None)
    write_weights(tmp_path / "v", random_tensors(), "stability", RECORD)
    with pytest.raises(ConfigError, match=r"was trained on weights that predict eps, but .*v predicts v"):
        record_with(open_source(tmp_path / "v"), "auto", None, lora)


def test_the_record_of_lora_tells_of_its_base(train_config: TrainConfig) -> None:
    weights = PretrainedConfig(path=Path("sd.ckpt"), prediction_type_was="eps", xxh3="0")
    tree = train_config.model_dump() | {"pretrained": weights, "lora": {"rank": 1}}
    record = record_of(TrainConfig.model_validate(tree), None, 8)
    assert (record.diffusion.prediction_type, record.base_prediction_type) == ("v", "eps")
