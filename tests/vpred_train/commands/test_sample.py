"""Mistakes on vpred-sample's command line: one line, exit code 2, no image and no folder."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from launcher.contract.config import ConfigError
from support.command_lines import refused
from vpred_train.commands import sample
from vpred_train.commands.sample import build_parser, main, plan
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.sampling.image_request import ImageRequest
from vpred_train.sampling.prompts import read_lines, read_prompts, warn_of_long_prompts
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_shapes
from vpred_train.weights.layouts.weight_source import weights_digest


@pytest.fixture
def weights(tmp_path: Path, train_config: TrainConfig) -> Path:
    path = tmp_path / "ema.safetensors"
    record = record_of(train_config, "constant", 80)
    tensors = {name: np.zeros(shape, np.float32) for name, shape in stability_shapes(record.model).items()}
    write_weights(path, tensors, "stability", record)
    return path


def test_every_mistake_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path) -> None:
    ckpt = ["--ckpt", str(weights), "--prompt", "a cat"]
    blank, picture = tmp_path / "blank.txt", tmp_path / "plain.png"
    blank.write_text(" \n\n")
    Image.new("RGB", (4, 4)).save(picture)
    script, packed = tmp_path / "script.png", PngImagePlugin.PngInfo()
    script.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    packed.add_itxt("vpred", "x" * (2 << 20), zip=True)  # more than Pillow unpacks
    Image.new("RGB", (4, 4)).save(tmp_path / "packed.png", pnginfo=packed)
    for arguments, message in (
        (["--prompt", "a cat"], "no weights: give --run RUN_DIR, --ckpt FILE or --like IMAGE"),
        (["--ckpt", str(weights)], "no prompt: give --prompt TEXT or --prompts-file FILE"),
        ([*ckpt, "--run", str(tmp_path)], "--run and --ckpt: both name weights; give one of them"),
        (["--ckpt", str(tmp_path / "no")], f"{tmp_path / 'no'}: no such file or folder; give a file of weights"),
        (["--ckpt", str(blank), "--prompt", "a"], f"{blank}: starts with b' "),
        ([*ckpt[:2], "--prompts-file", str(blank)], f"{blank}: holds no prompt; write one on each line"),
        ([*ckpt[:2], "--prompts-file", str(picture)], f"{picture}: cannot be read as UTF-8 text"),
        ([*ckpt, "--steps", "0"], "--steps: found 0 (Input should be greater than 0)"),
        ([*ckpt, "--timestep-spacing", "even"], "--timestep-spacing: found 'even'"),
        ([*ckpt, "--images-per-prompt", "0"], "--images-per-prompt: found 0 (must be at least 1)"),
        ([*ckpt, "--height", "0"], "--height: found 0 (Input should be greater than 0)"),
        ([*ckpt, "--guidance-scale", "inf"], "--guidance-scale: found inf (Input should be a finite number)"),
        ([*ckpt, "--seed", str(1 << 63)], "--seed: found 9223372036854775808 (Input should be less than"),
        ([*ckpt, "--seed", str((1 << 63) - 1), "--images-per-prompt", "2"], "--seed: found 9223372036854775807, from"),
        ([*ckpt, "--sampler", "dpm"], "--sampler: found 'dpm'"),
        ([*ckpt, "--width", "9"], "--width: found 9 (must be a multiple of 2 for these weights)"),
        ([*ckpt, "--eta", "0.5"], "command line: eta is 0.5, but dpmpp_2m has none; leave it 0 or use ddim"),
        (["--like", str(picture)], f"{picture}: holds no 'vpred' text chunk"),
        (["--like", str(blank)], f"{blank}: cannot be read as an image"),
        (["--like", str(script)], f"{script}: cannot be read as an image"),
        (["--like", str(tmp_path / "packed.png")], f"{tmp_path / 'packed.png'}: cannot be read as an image"),
        (["--prompt", "a", "--ckpt", "/dev/zero"], "/dev/zero: is a device, not a regular file; give a file"),
        ([*ckpt[:2], "--prompts-file", "/dev/zero"], "/dev/zero: is a device, not a regular file; give a file"),
        (["--like", "/dev/zero"], "/dev/zero: is a device, not a regular file; give a file"),
        ([*ckpt[:2], "--prompt", "a \udcb9\udcb7"], r"--prompt: found 'a \udcb9\udcb7', which is not UTF-8; set the"),
        ([*ckpt, "--negative-prompt", "\udcff"], r"--negative-prompt: found '\udcff', which is not UTF-8"),
        ([*ckpt, "--grid", str(tmp_path)], f"--grid: found {tmp_path}; give the name of a file that ends with .png"),
        ([*ckpt, "--grid", "grid.jpg"], "--grid: found grid.jpg; give the name of a file that ends with .png"),
        ([*ckpt, "--resolution", "0", "--prediction-type", "v"], "--resolution: found 0 (must be at least 1)"),
        (["--like", str(picture), "--seed", "1"], "--like: takes all settings from its image; leave out --seed"),
    ):
        assert refused(capsys, tmp_path, *arguments).startswith(message)


def test_other_weights_than_the_images_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path
) -> None:
    (request,) = plan(build_parser().parse_args(["--ckpt", str(weights), "--prompt", "a cat", "--seed", "7"]))
    assert (request.prompt, request.sampling.seed, request.height) == ("a cat", 7, 8)
    assert request.weights_xxh3 == weights_digest(weights)
    picture = tmp_path / "picture.png"
    Image.new("RGB", (8, 8)).save(picture, pnginfo=request.png_text())
    assert plan(build_parser().parse_args(["--like", str(picture)])) == [request]
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert refused(capsys, tmp_path, "--like", str(picture)).startswith(f"{weights}: xxh3 is ")
    weights.unlink()
    assert refused(capsys, tmp_path, "--like", str(picture)).startswith(f"{weights}: cannot be read (No such file")


def test_weights_must_tell_or_be_told(capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path) -> None:
    asked = ["--ckpt", str(weights), "--prompt", "a cat"]
    assert refused(capsys, tmp_path, *asked, "--prediction-type", "eps").startswith(
        f"{weights}: tells v-prediction, but --prediction-type tells eps"
    )
    weights.write_bytes(weights.read_bytes().replace(b'"parameterization"', b'"somebody_elses_1"'))
    assert "give --prediction-type v (768-v weights) or eps" in refused(capsys, tmp_path, *asked)


def test_what_the_text_encoder_does_not_see_is_said(
    capsys: pytest.CaptureFixture[str], model_config: ModelConfig
) -> None:
    warn_of_long_prompts(["one two three four five six, Café seven!", "one two"] * 2, model_config.text_encoder)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the prompt 'one two three") and line.endswith("cut off: ', café seven !'")


def test_each_prompt_may_have_its_negative(capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path) -> None:
    negatives = tmp_path / "negatives.txt"
    negatives.write_text("blue\n\n")
    asked = [
        "--ckpt",
        str(weights),
        "--prompt",
        "a cat",
        "--prompt",
        "a dog",
        "--negative-prompts-file",
        str(negatives),
    ]
    requests = plan(build_parser().parse_args([*asked, "--images-per-prompt", "2"]))
    assert [request.negative_prompt for request in requests] == ["blue", "blue", "", ""]
    assert refused(capsys, tmp_path, *asked, "--prompt", "a bird").startswith(f"{negatives}: holds 2 lines for 3")
    assert refused(capsys, tmp_path, *asked, "--negative-prompt", "red").endswith("give one of them")


def test_what_another_launcher_left_is_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_RANK", "0")
    line = refused(capsys, tmp_path, "--ckpt", str(weights), "--prompt", "a cat")
    assert line.startswith("openmpi environment: OMPI_COMM_WORLD_RANK is set but OMPI_COMM_WORLD_SIZE is not; unset")


def test_each_image_has_its_own_prompt_and_seed(tmp_path: Path, weights: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a dog\n\na bird \n")
    arguments = ["--ckpt", str(weights), "--prompt", "a cat", "--prompts-file", str(prompts)]
    requests = plan(build_parser().parse_args([*arguments, "--images-per-prompt", "2", "--seed", "5"]))
    assert [request.prompt for request in requests] == ["a cat"] * 2 + ["a dog"] * 2 + ["a bird"] * 2
    assert [request.sampling.seed for request in requests] == [5, 6, 7, 8, 9, 10]


def test_a_line_of_prompts_ends_at_a_line_end_and_nowhere_else(tmp_path: Path) -> None:
    """Not where else Unicode ends lines, as str.splitlines does; and Notepad's mark is none of the first prompt."""
    path = tmp_path / "prompts.txt"
    odd = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"
    for content, expected in (
        (f"{odd}\na dog\n", [odd, "a dog"]),
        ("\ufeffa cat\r\n\r\na dog\ra bird", ["a cat", "", "a dog", "a bird"]),
        ("\ufeff\na cat\n", ["", "a cat"]),
        ("a \ufeff cat", ["a \ufeff cat"]),
        ("a cat\n\n", ["a cat", ""]),
        (" \u3000a cat\t\n", ["a cat"]),
        ("", []),
    ):
        path.write_bytes(content.encode())
        assert read_lines(path) == expected
    path.write_bytes("\ufeff\n\na cat\n".encode())
    assert read_prompts(["first"], path) == ["first", "a cat"]
    path.write_bytes("a cat".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"cannot be read as UTF-8 text .*; save it as UTF-8"):
        read_lines(path)


def picture_of(path: Path, request: ImageRequest, **changes: Any) -> Path:
    """A PNG that holds the request with some keys changed, whatever their values."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("vpred", json.dumps(request.model_dump(mode="json") | changes))
    Image.new("RGB", (8, 8)).save(path, pnginfo=text)
    return path


def test_what_a_strangers_image_may_ask_for(capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path) -> None:
    (request,) = plan(build_parser().parse_args(["--ckpt", str(weights), "--prompt", "a cat"]))
    os.mkfifo(tmp_path / "pipe")
    record = request.record.model_dump(mode="json")
    deep = record | {"model": record["model"] | {"unet": record["model"]["unet"] | {"res_blocks": 10**9}}}
    for changes, message in (
        ({"weights": "/dev/zero"}, "/dev/zero: is a device, not a regular file; give a file"),
        ({"weights": str(tmp_path / "pipe")}, f"{tmp_path / 'pipe'}: is a pipe, not a regular file; give a file"),
        ({"weights": "a\0b"}, r"a\x00b: is no path; give a file"),
        ({"lora": {"path": "/dev/zero", "xxh3": "0"}}, "/dev/zero: is a device, not a regular file"),
        (
            {"lora": {"path": "x", "xxh3": "0", "scale": math.inf}},
            "{0}: its settings: lora.scale: found Infinity (should",
        ),
        ({"height": 9}, "{0}: its settings: height: found 9 (must be a multiple of 2 for these weights)"),
        ({"row": 10**9}, "{0}: its settings: row is 1000000000, not below the batch of "),
        ({"record": deep}, "{0}: its settings: record.model.unet.res_blocks: found 1000000000"),
        ({"prompt": 3}, "{0}: its settings: prompt: found 3"),
        ({"more": 1}, "{0}: its settings: more: found an unknown key; known: format, prompt"),
    ):
        path = picture_of(tmp_path / "picture.png", request, **changes)
        assert refused(capsys, tmp_path, "--like", str(path)).startswith(message.format(path))


def test_an_image_whose_text_is_too_long_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, weights: Path
) -> None:
    """Pillow refuses texts that unpack to more than 1 MiB, with a ValueError."""
    text = PngImagePlugin.PngInfo()
    text.add_itxt("vpred", "[" * (2 << 20), zip=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png", pnginfo=text)
    line = refused(capsys, tmp_path, "--like", str(tmp_path / "x.png"))
    assert line.startswith(f"{tmp_path / 'x.png'}: cannot be read as an image (Decompressed data too large")


def test_images_alone_lie_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: Path) -> None:
    """A sheet of them is written where --grid says, and nowhere without it."""

    class Pipeline:
        def generate(self, prompts: list[str], seeds: list[int], _: list[str]) -> Any:
            return np.stack([np.full((3, 8, 8), seed / 10, np.float32) for seed in seeds])

    monkeypatch.setattr(sample, "load_pipeline", lambda *_: Pipeline())
    words = ["--ckpt", str(weights), "--prompt", "a", "--images-per-prompt", "3", "--seed", "0"]
    folder = tmp_path / "images"
    (folder / "grid_00007.png").mkdir(parents=True)  # an old one's name counts for nothing
    (folder / "\u00b2.png").mkdir()  # nor does a digit that is no number
    for more, expected in (([], range(3)), (["--grid", str(tmp_path / "sheets" / "all.png")], range(6))):
        with pytest.raises(SystemExit) as end:
            main([*words, "--output", str(folder), *more])
        assert end.value.code == 0
        assert sorted(path.name for path in folder.glob("0*.png")) == [f"{number:05d}.png" for number in expected]
        assert (tmp_path / "sheets").exists() == bool(more)
    assert [path.name for path in (tmp_path / "sheets").iterdir()] == ["all.png"]
    with Image.open(tmp_path / "sheets" / "all.png") as sheet:
        assert sheet.size == (16, 16)
        assert [sheet.getpixel((8 * (n % 2), 8 * (n // 2))) for n in range(3)] == [
            (value,) * 3 for value in (128, 140, 153)
        ]
