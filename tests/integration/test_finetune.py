"""From published weights to finetuned images: a narrow Stable Diffusion 2 with its autoencoder, on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launcher.contract.run_dir import RunDir
from support.finetuning import RECIPE, prepare
from support.jobs import DEADLINE_S, end, losses, pixels, sample, start, write_images
from support.weights_files import TINY, TINY_RECORD
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.tensor_shapes import UNET, stability_shapes
from vpred_train.weights.layouts.weight_source import open_source


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A finished run that began with a diffusers folder beside its recipe."""
    root = tmp_path_factory.mktemp("finetune")
    prepare(root)
    (root / "recipe.yaml").write_text(RECIPE)
    code, output = end(start(root / "recipe.yaml", root / "run", 2))
    assert code == 0, output
    return RunDir(root / "run")


def test_only_what_is_trainable_changes(run: RunDir) -> None:
    published = read_weights(run.root.with_name("published"))
    raw, ema = (read_weights(run.weights / f"{name}.safetensors") for name in ("raw", "ema"))
    changed = [name for name in published if not np.array_equal(published[name], raw[name])]
    assert len(losses(run.root)) == 3
    assert "probe of the pretrained weights: residuals v" in run.attempt(1).log(0).read_text()
    assert {name.startswith(UNET) for name in changed} == {True}
    assert len(changed) > 0.9 * sum(name.startswith(UNET) for name in published)
    assert any(not np.array_equal(raw[name], ema[name]) for name in changed)
    record = open_source(run.weights / "ema.safetensors").record
    rescaled = TINY_RECORD.diffusion.model_copy(update={"zero_terminal_snr": True})
    expected = TINY_RECORD.model_copy(update={"average": "constant", "samples_seen": 12, "diffusion": rescaled})
    assert record == expected


def test_weights_that_changed_since_are_refused(run: RunDir) -> None:
    record = run.root.with_name("published") / "scheduler" / "scheduler_config.json"
    before = record.read_text()
    record.write_text(before + "\n")
    code, output = end(start(run.root.with_name("recipe.yaml"), run.root, 2))
    record.write_text(before)
    assert code == 2
    assert "belongs to a different recipe: pretrained.xxh3" in output


def test_all_layouts_make_the_same_image(run: RunDir, tmp_path: Path) -> None:
    """Also by MindONE's command, whose defaults are two batches of four."""
    source = run.weights / "ema.safetensors"
    paths = {"stability": source, "mindone": tmp_path / "sd.ckpt", "diffusers": tmp_path / "folder"}
    for layout in ("mindone", "diffusers"):
        argv = [sys.executable, "-P", "-m", "vpred_train.commands.weights", "convert", str(source), str(paths[layout])]
        subprocess.run([*argv, "--to", layout], check=True, timeout=DEADLINE_S)
    options = ["--prompt", "picture 1", "--steps", "2", "--seed", "3", "--width", "24"]
    images = [
        pixels(*sample("--ckpt", str(path), *options, "--output", str(tmp_path / layout)))
        for layout, path in paths.items()
    ]
    assert images[0].shape == (16, 24, 3)
    assert (images[0] == images[1]).all()
    assert (images[0] == images[2]).all()

    argv = [sys.executable, "-P", "-m", "vpred_train.text_to_image", "--ckpt_path", str(paths["mindone"])]
    argv += ["--prompt", "picture 1", "--n_iter", "1", "--n_samples", "2", "--version", "2.1-v"]
    argv += ["--sampling_steps", "2", "--scale", "3", "--seed", "3", "--W", "24", "--output_path", "out"]
    answer = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=DEADLINE_S, env=os.environ)
    assert answer.returncode == 0, answer.stderr
    assert sorted(path.name for path in (tmp_path / "out" / "samples").iterdir()) == [
        "00000.png",
        "00001.png",
    ]
    assert [path.name for path in (tmp_path / "out" / "grids").iterdir()] == ["grid_00000.png"]
    assert pixels(tmp_path / "out" / "grids" / "grid_00000.png").shape == (16, 48, 3)
    np.testing.assert_allclose(pixels(tmp_path / "out" / "samples" / "00000.png"), images[0], atol=1)
    with Image.open(tmp_path / "out" / "samples" / "00001.png") as image:
        settings = json.loads(image.text["vpred"])
    assert (settings["sampling"]["seed"], settings["record"]["samples_seen"]) == (4, 12)


def test_eps_weights_become_v_with_zero_terminal_snr(tmp_path: Path) -> None:
    """Lin et al. 2023 (arXiv 2305.08891) finetuned SD2-base so; refused without the key, with the key named."""
    eps = TINY_RECORD.model_copy(update={"diffusion": DiffusionConfig(prediction_type="eps")})
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in stability_shapes(TINY).items()}
    write_weights(tmp_path / "published", tensors, "diffusers", eps)
    write_images(tmp_path / "images", 4)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.replace("zero_terminal_snr: true", "zero_terminal_snr: true, prediction_type: v"))
    code, output = end(start(recipe, tmp_path / "run", 1))
    assert code == 2
    assert "found 'v', weights tell 'eps'" in output and "set pretrained.prediction_type_was=eps" in output
    code, output = end(start(recipe, tmp_path / "run", 1, overrides=["pretrained.prediction_type_was=eps"]))
    assert code == 0, output
    run = RunDir(tmp_path / "run")
    assert len(losses(run.root)) == 3
    expected = DiffusionConfig(prediction_type="v", zero_terminal_snr=True)
    for name in ("raw", "ema"):
        record = open_source(run.weights / f"{name}.safetensors").record
        assert record is not None
        assert (record.diffusion, record.base_prediction_type) == (expected, None)
    argv = [
        sys.executable,
        "-P",
        "-m",
        "vpred_train.commands.weights",
        "convert",
        str(run.weights / "ema.safetensors"),
        "folder",
    ]
    subprocess.run([*argv, "--to", "diffusers"], check=True, timeout=DEADLINE_S, cwd=tmp_path)
    scheduler = json.loads((tmp_path / "folder" / "scheduler" / "scheduler_config.json").read_text())
    assert (scheduler["prediction_type"], scheduler["rescale_betas_zero_snr"]) == ("v_prediction", True)
    assert sorted(path.name for path in run.samples.iterdir()) == ["00000.png", "00001.png"]
    assert pixels(*sample("--run", str(run.root), "--prompt", "picture 1", "--output", str(tmp_path / "x"))).shape == (
        16,
        16,
        3,
    )
