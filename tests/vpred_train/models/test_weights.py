"""Weights into networks and out of them; what training starts from and what it makes of the weights' record."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from launcher.contract.config import ConfigError, dump_yaml, load_document
from support.weights_files import TINY, TINY_RECORD
from vpred_train.commands.sample import main
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.train import TrainConfig
from vpred_train.models.networks import Networks
from vpred_train.models.weights import get_weights, set_weights
from vpred_train.prepare.recipe import load_recipe
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_shapes
from vpred_train.weights.pretrained import open_pretrained

RECIPE = """
total_samples: 8
global_batch: 4
data: {path: images, resolution: 16}
optimizer: {learning_rate: 1e-3}
checkpoint: {every_samples: 8}
pretrained: {path: sd.safetensors}
"""


def random_weights(seed: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, np.float32) for name, shape in stability_shapes(TINY).items()}


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe that says nothing of its model, beside the weights that do, and one image."""
    write_weights(tmp_path / "sd.safetensors", random_weights(), "stability", TINY_RECORD)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "img_txt.csv").write_text("dir,text\n0.png,black\n")
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_every_tensor_goes_in_and_comes_out() -> None:
    networks = Networks(TINY, 0)
    weights = random_weights()
    fresh = dict(get_weights(networks))
    assert set(fresh) == set(weights)
    set_weights(networks, weights, ("text_encoder", "vae"))
    for name, tensor in get_weights(networks).items():
        taken = not name.startswith("model.diffusion_model.")
        np.testing.assert_array_equal(tensor, (weights if taken else fresh)[name])


def test_a_recipe_takes_its_model_from_the_record(recipe: Path) -> None:
    config = load_recipe(recipe)
    assert config.model == TINY
    assert config.diffusion == TINY_RECORD.diffusion
    assert config.pretrained is not None
    assert config.pretrained.path == recipe.with_name("sd.safetensors")
    resolved = recipe.with_name("resolved.yaml")
    resolved.write_text(dump_yaml(config))
    assert load_document(TrainConfig, resolved) == config
    tensors = open_pretrained(config)
    np.testing.assert_array_equal(tensors["first_stage_model.quant_conv.bias"], random_weights()[
        "first_stage_model.quant_conv.bias"
    ])  # fmt: skip
    changed = load_recipe(recipe, ["diffusion.zero_terminal_snr=true", "model.text_encoder.padding=end"])
    assert changed.diffusion == DiffusionConfig(beta_end=0.013, zero_terminal_snr=True)
    assert changed.model.text_encoder == TINY.text_encoder.model_copy(update={"padding": "end"})


@pytest.mark.parametrize(
    ("overrides", "fault"),
    [
        (["diffusion.prediction_type=eps"], "diffusion.prediction_type: found 'eps', weights tell 'v'"),
        (["model.unet.head_channels=4"], "model.unet.head_channels: found 4, weights tell 8"),
        (["model.unet.model_channels=64"], "model.unet.model_channels: found 64, weights tell 8"),
        (["pretrained.xxh3=ab"], "xxh3 is"),
        (["pretrained.weights=raw"], "holds ema weights, not raw"),
    ],
)
def test_a_recipe_that_contradicts_its_weights(
    overrides: list[str], fault: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vpred_train.commands.train import main

    with pytest.raises(SystemExit) as end:
        main(["--check", "--recipe", str(recipe), *overrides])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2
    assert line.startswith(str(recipe.with_name("sd.safetensors"))) and fault in line


def test_weights_without_a_record_must_be_told_of(recipe: Path) -> None:
    source = recipe.with_name("sd.safetensors")
    source.unlink()
    write_weights(source, random_weights(), "stability", TINY_RECORD)
    stripped = source.read_bytes().replace(b'"parameterization"', b'"somebody_elses_1"')
    source.write_bytes(stripped)
    model = f"model={TINY.model_dump_json()}"
    with pytest.raises(ConfigError, match=r"does not tell what the network predicts; set diffusion.prediction_type"):
        load_recipe(recipe, [model])
    config = load_recipe(recipe, [model, "diffusion.prediction_type=eps"])
    assert config.diffusion.prediction_type == "eps"
    assert len(open_pretrained(config)) == len(stability_shapes(TINY))


def test_sampling_from_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--run", str(tmp_path), "--prompt", "x"])
    assert caught.value.code == 2
    assert "ema.safetensors: no such file or folder; finish the run first" in capsys.readouterr().err
