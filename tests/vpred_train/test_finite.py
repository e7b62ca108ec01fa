"""NaN and infinity: in options, recipes, weights and images they are asked for and refused, with what holds them."""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import numpy as np
import pytest
from PIL import Image
from pydantic import BaseModel, TypeAdapter, ValidationError
from safetensors.numpy import save_file

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from support.command_lines import refused, run
from support.lora_files import FACTORS, GOOD
from support.weights_files import MODEL, RECORD, TINY_RECORD, random_tensors, write_tiny
from vpred_train.commands import mindone_text_to_image, sample
from vpred_train.commands.sample import build_parser, main, make_images, plan
from vpred_train.commands.train import build_parser as train_parser
from vpred_train.commands.train import main as train
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import PretrainedConfig
from vpred_train.distributed.collectives import SingleProcess
from vpred_train.latent_cache.requirements import cache_specs
from vpred_train.models import build as pretrained
from vpred_train.models.networks import Networks
from vpred_train.prepare.mindone_keys import MindoneRecipe
from vpred_train.prepare.recipe import load_recipe
from vpred_train.sampling.image_request import LoraRequest
from vpred_train.sampling.images import contact_sheet, png_of
from vpred_train.sampling.pipeline import NotFiniteError, TextToImage
from vpred_train.sampling.weight_selection import add_weights_options
from vpred_train.training import prediction_probe
from vpred_train.training.finish import check_samples
from vpred_train.training.prediction_probe import Probe
from vpred_train.weights.layouts.read_write import read_weights, require_finite, weights_of, write_weights
from vpred_train.weights.layouts.weight_source import open_source
from vpred_train.weights.lora.factors import Factors
from vpred_train.weights.lora.files import open_lora, read_factors, write_lora

MAY_BE_INFINITE = {("OptimizerConfig", "max_grad_norm"), ("MindoneRecipe", "max_grad_norm")}
BIAS = "model.diffusion_model.out.2.bias"


def models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    for each in (annotation, *get_args(annotation)):
        if isinstance(each, type) and issubclass(each, BaseModel):
            yield each
        elif get_args(each) and each is not annotation:
            yield from models_in(each)


def float_keys(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[tuple[type[BaseModel], str]]:
    """Every key of `model` and of its sections whose type holds a float anywhere."""

    def holds_float(annotation: Any) -> bool:
        return annotation is float or any(holds_float(each) for each in get_args(annotation))

    if model in seen:
        return
    seen.add(model)
    for name, info in model.model_fields.items():
        if holds_float(info.annotation):
            yield model, name
        for inner in models_in(info.annotation):
            yield from float_keys(inner, seen)


KEYS = [*float_keys(TrainConfig, set()), *float_keys(MindoneRecipe, set()), *float_keys(LoraRequest, set())]


def test_every_key_of_a_recipe_is_looked_at() -> None:
    names = {name for _, name in KEYS}
    assert {"learning_rate", "guidance_scale", "sigma_rel", "caption_drop", "max_aspect", "betas", "share"} <= names
    assert len(KEYS) > 40


@pytest.mark.parametrize(("model", "key"), KEYS, ids=lambda each: each if isinstance(each, str) else each.__name__)
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_key_takes_finite_numbers_alone(model: type[BaseModel], key: str, value: float) -> None:
    """As JSON, in which recipes are read; a key that takes several numbers is given them."""
    info = model.model_fields[key]
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    given: Any = (
        [value, value]
        if any(get_origin(each) is tuple for each in (info.annotation, *get_args(info.annotation)))
        else value
    )
    if value == math.inf and (model.__name__, key) in MAY_BE_INFINITE:
        return
    config = None if model.model_config is None else model.model_config.get("allow_inf_nan")
    adapter: TypeAdapter[Any] = TypeAdapter(annotation, config={"allow_inf_nan": config is not False})
    with pytest.raises(ValidationError):
        adapter.validate_python(given)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_every_number_of_a_command_line_is_finite(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "t.safetensors", "stability")
    ckpt = ["--ckpt", str(tmp_path / "t.safetensors"), "--prompt", "a cat"]
    for option in ("guidance-scale", "guidance-rescale", "eta"):
        line = refused(capsys, tmp_path, *ckpt, f"--{option}={value}")
        assert line.startswith(f"--{option}: found {float(value)!r} (Input should be ")
    with pytest.raises(SystemExit) as end:
        main([*ckpt, f"--lora-scale={value}"])
    assert end.value.code == 2
    assert capsys.readouterr().err.endswith(f"--lora-scale: found '{value}' (must be a finite number)\n")
    for words in (
        ["compare", "a", "b", f"--tolerance={value}"],
        ["merge", "a", "b", "c", "--to", "mindone", f"--scale={value}"],
    ):
        code, _, err = run(capsys, *words)
        assert (code, f"found '{value}' (must be a finite number)" in err) == (2, True)
    for parser, option in (
        (mindone_text_to_image.build_parser(), "--scale"), (mindone_text_to_image.build_parser(), "--lora_scale"),
        (mindone_text_to_image.build_parser(), "--ddim_eta"), (train_parser(), "--collective-timeout-s"),
    ):  # fmt: skip
        with pytest.raises(SystemExit):
            parser.parse_args(
                [f"{option}={value}", "--ckpt_path=x"] if "text-to-image" in parser.prog else [f"{option}={value}"]
            )
        assert f"argument {option}: found '{value}' (must be a finite number)" in capsys.readouterr().err


def damaged(path: Path, value: float, layout: str) -> Path:
    """The narrow model's weights with one value of one tensor replaced."""
    tensors = random_tensors()
    tensors[BIAS][1] = value
    write_weights(path, tensors, layout, RECORD)
    return path


@pytest.mark.parametrize("layout", ["stability", "mindone", "diffusers"])
@pytest.mark.parametrize(("value", "words"), [(math.nan, "1 NaN of 4 values"), (-math.inf, "1 inf of 4 values")])
def test_weights_that_are_not_finite(
    layout: str, value: float, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = damaged(tmp_path / "nan.ckpt", value, layout)
    name = {"mindone": "model.diffusion_model.out.2.conv.bias", "diffusers": "unet/conv_out.bias"}.get(layout, BIAS)
    with pytest.raises(ConfigError, match=rf"{name} holds {words}; give weights that are finite"):
        require_finite(weights_of(open_source(path)))
    assert not np.isfinite(read_weights(path)[BIAS]).all()  # `compare` tells where two differ
    code, out, _ = run(capsys, "inspect", path)
    assert (code, f"{name} holds {words}" in out.splitlines()[-1], "fits the model" in out) == (0, True, False)
    code, out, _ = run(capsys, "inspect", path, "--headers-only")
    assert out.splitlines()[-1] == "   fits the model; its values were not read"
    code, _, err = run(capsys, "convert", path, tmp_path / "new", "--to", "stability")
    assert (code, f"{name} holds {words}" in err, err.count("\n")) == (2, True, 1)
    assert not (tmp_path / "new").exists()


def test_float64_that_float32_cannot_hold(tmp_path: Path) -> None:
    tensors = {name: array.astype(np.float64) for name, array in random_tensors().items()}
    tensors[BIAS][0] = 1e300
    save_file(tensors, tmp_path / "x")
    with pytest.raises(ConfigError, match=f"{BIAS} holds 1 inf of 4 values"):
        require_finite(weights_of(open_source(tmp_path / "x"), model=MODEL))


def test_lora_that_is_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, first = next(iter(FACTORS.items()))
    broken = FACTORS | {target: Factors(first.down * math.nan, first.up, first.alpha)}
    write_lora(tmp_path / "x", broken, "stability", RECORD)
    with pytest.raises(
        ConfigError, match=r"lora_down.weight holds \d+ NaN of \d+ values; give LoRA weights that are finite"
    ):
        read_factors(open_lora(tmp_path / "x"))
    code, out, _ = run(capsys, "inspect", tmp_path / "x")
    assert (code, "NaN of" in out.splitlines()[-1]) == (0, True)
    name = next(iter(GOOD)).replace(".lora_down.weight", ".alpha")
    save_file(GOOD | {name: np.array(math.inf, np.float32)}, tmp_path / "y")
    with pytest.raises(ConfigError, match="y: holds inf where a number should be"):
        read_factors(open_lora(tmp_path / "y"), MODEL)
    write_weights(tmp_path / "base", random_tensors(), "stability", RECORD)
    write_lora(tmp_path / "z", FACTORS, "stability", RECORD)
    code, _, err = run(
        capsys, "merge", tmp_path / "base", tmp_path / "z", tmp_path / "new", "--to", "stability", "--scale", "1e38"
    )
    assert (code, "with LoRA's change holds" in err, (tmp_path / "new").exists()) == (2, True, False)


RECIPE = """
total_samples: 8
global_batch: 4
data: {path: images, resolution: 16}
optimizer: {learning_rate: 1e-3}
checkpoint: {every_samples: 8}
pretrained: {path: sd.safetensors}
"""


def test_training_does_not_begin_with_weights_that_are_not_finite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also not with those of a network that is needed at the end alone; those of networks that are not taken may be."""
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "img_txt.csv").write_text("dir,text\n0.png,black\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    for name in (BIAS, "first_stage_model.quant_conv.bias"):
        write_tiny(tmp_path / "sd.safetensors", "stability")
        tensors = dict(read_weights(tmp_path / "sd.safetensors"))
        tensors[name][0] = math.inf
        (tmp_path / "sd.safetensors").unlink()
        write_weights(tmp_path / "sd.safetensors", tensors, "stability", TINY_RECORD)
        with pytest.raises(SystemExit) as end:
            train(["--check", "--recipe", str(tmp_path / "recipe.yaml")])
        (line,) = capsys.readouterr().err.splitlines()
        assert (end.value.code, f"sd.safetensors: {name} holds 1 inf of" in line) == (2, True)
        config = load_recipe(tmp_path / "recipe.yaml")
        config = config.model_copy(update={"precision": config.precision.on(ACCELERATORS["cpu"])})
        with pytest.raises(ConfigError, match=f"{name} holds 1 inf of"):
            pretrained.build_networks(config)
        cached = config.model_copy(update={"data": config.data.model_copy(update={"cache": tmp_path})})
        assert cached.networks_in_training == ("unet",)
        with pytest.raises(ConfigError, match=f"{name} holds 1 inf of"):
            pretrained.build_networks(cached)
            cache_specs(cached)  # rank 0 reads the encoders' weights for their digests
    taken = (
        PretrainedConfig(path=config.pretrained.path, networks=("unet", "text_encoder")) if config.pretrained else None
    )
    pretrained.build_networks(config.model_copy(update={"pretrained": taken}))


def test_a_probe_of_nan_refuses_the_weights(train_config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    config = train_config.model_copy(update={"pretrained": PretrainedConfig(path=Path("sd.ckpt"))})
    nothing: Any = None
    for value in (math.nan, math.inf):
        found = Probe({"v": {500: 0.1}, "eps": {500: value}, "x0": {500: value}})
        assert not found.finite
        monkeypatch.setattr(prediction_probe, "probe", lambda *_, found=found: found)
        with pytest.raises(ConfigError, match=r"sd.ckpt: predicts what is not finite.*\(residuals v 0.100, eps"):
            prediction_probe.check_prediction(config, nothing, nothing, nothing, SingleProcess())


def test_the_probe_command_refuses_them_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny(tmp_path / "t.safetensors", "stability")
    (tmp_path / "images").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "images" / "0.png")
    (tmp_path / "images" / "img_txt.csv").write_text("dir,text\n0.png,black\n")
    found = Probe({kind: {500: math.nan} for kind in ("v", "eps", "x0")})
    monkeypatch.setattr(prediction_probe, "probe", lambda *_: found)
    code, out, err = run(capsys, "probe", tmp_path / "t.safetensors", "--data", tmp_path / "images")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "t.safetensors: predicts what is not finite" in err and "residuals v nan" in err


def test_no_pixel_is_made_of_nan() -> None:
    images = np.zeros((3, 3, 4, 4), np.float32)
    for value in (math.nan, math.inf):
        images[1, 0, 2, 3] = value
        with pytest.raises(NotFiniteError, match="image 1 of 3 is not finite"):
            contact_sheet(images)
        with pytest.raises(NotFiniteError, match="image 0 of 1 is not finite"):
            png_of(images[1])
    assert png_of(images[0]).startswith(b"\x89PNG")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_the_pipeline_hides_no_infinity(
    value: float, model_config: ModelConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clipped to [-1, 1] it would be a white or a black image."""
    sampling = SamplingConfig(steps=1, batch_size=2)
    pipeline = TextToImage(Networks(model_config, 0), model_config, DiffusionConfig(), sampling, 8, 8)
    assert np.isfinite(pipeline.generate(["a", "b"], [1, 2])).all()
    decoded = np.full((2, 3, 8, 8), 7, np.float32)
    decoded[1] = value
    monkeypatch.setattr(pipeline.latents, "decode", lambda _: decoded)
    first, second = pipeline.generate(["a", "b"], [1, 2])
    assert (first == 1).all()
    assert np.isnan(second).all()


def test_an_image_that_is_not_finite_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny(tmp_path / "t.safetensors", "stability")
    words = ["--ckpt", str(tmp_path / "t.safetensors"), "--prompt", "a", "--prompt", "b"]
    requests = plan(build_parser().parse_args(words))

    class Broken:
        def generate(self, prompts: list[str], *_: Any) -> Any:
            images = np.zeros((len(prompts), 3, 16, 16), np.float32)
            images[-1] = math.nan
            return images

    monkeypatch.setattr(sample, "load_pipeline", lambda *_: Broken())
    with pytest.raises(NotFiniteError):
        make_images(requests, tmp_path / "out", ACCELERATORS["cpu"], SingleProcess(), tmp_path / "grid.png")
    assert not (tmp_path / "out").exists() and not (tmp_path / "grid.png").exists()


def test_the_options_of_weights_are_looked_at() -> None:
    """A new option that takes any float would be missed by the tests above."""
    parser = argparse.ArgumentParser()
    add_weights_options(parser)
    for each in (parser, mindone_text_to_image.build_parser(), train_parser()):
        assert [action.dest for action in each._actions if action.type is float] == []


def test_the_end_of_a_run_says_where_its_weights_are(tmp_path: Path) -> None:
    images = np.zeros((2, 3, 4, 4), np.float32)
    check_samples(images, tmp_path / "ema.safetensors")
    images[1, 0, 0, 0] = math.nan
    with pytest.raises(
        NotFiniteError, match=r"image 1 of 2 is not finite.*the weights are in .*ema.safetensors, and final_samples=0"
    ):
        check_samples(images, tmp_path / "ema.safetensors")
