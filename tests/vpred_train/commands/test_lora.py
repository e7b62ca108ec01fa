"""LoRA on the command lines of vpred-weights and vpred-sample: what is written, and mistakes in one line."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from launcher.contract.config import ConfigError, build_document
from support.command_lines import refused, run
from support.lora_files import FACTORS, GOOD, assert_same
from support.weights_files import MODEL, RECORD, random_tensors
from vpred_train.commands.sample import build_parser, plan
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.sampling.weight_selection import Named, choose, warn_of_other_base
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.weight_source import open_source, weights_digest
from vpred_train.weights.lora.factors import merged
from vpred_train.weights.lora.files import open_lora, read_factors, write_lora

TENSORS = random_tensors()
BASE = LazyTensors({name: tensor.copy for name, tensor in TENSORS.items()})
RECIPE = {
    "total_samples": 8,
    "global_batch": 4,
    "data": {"path": ".", "resolution": 512},
    "pretrained": {"path": "base.ckpt"},
    "lora": {"rank": 4},
    "optimizer": {"learning_rate": 1e-3},
    "checkpoint": {"every_samples": 8},
}
TRAINED = RECORD.model_copy(update={"samples_seen": 900, "resolution": 512})


def told(prediction_type: str) -> ParameterizationRecord:
    diffusion = {"prediction_type": prediction_type}
    return ParameterizationRecord.model_validate(TRAINED.model_dump() | {"diffusion": diffusion})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """base.ckpt, lora.safetensors of it, and plain.safetensors, which tells nothing of itself."""
    write_weights(tmp_path / "base.ckpt", TENSORS, "mindone", RECORD)
    write_lora(tmp_path / "lora.safetensors", FACTORS, "stability", TRAINED)
    write_lora(tmp_path / "plain.safetensors", FACTORS, "diffusers", None, MODEL)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("lora", ["lora.safetensors", "plain.safetensors"])
def test_merge_writes_full_weights(lora: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["merge", "base.ckpt", lora, "merged", "--to", "diffusers", "--scale", "0.5"]
    code, out, _ = run(capsys, *words)
    assert (code, "1214 tensors, diffusers layout" in out) == (0, True)
    assert open_source(folder / "merged").record == (TRAINED if lora == "lora.safetensors" else RECORD)
    expected, found = merged(BASE, FACTORS, 0.5), read_weights(folder / "merged")
    for name in TENSORS:
        np.testing.assert_array_equal(found[name], expected[name])


def test_base_weights_that_tell_nothing_are_told_by_lora(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(TENSORS, folder / "published")
    assert run(capsys, "merge", "published", "lora.safetensors", "merged", "--to", "stability")[0] == 0
    assert open_source(folder / "merged").record == TRAINED


def test_another_base_is_told_and_the_runs_own_is_demanded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, other = weights_digest(folder / "base.ckpt"), "0" * 32
    for name, digest in (("own", base), ("foreign", other)):
        write_lora(folder / name, FACTORS, "stability", TRAINED.model_copy(update={"base_xxh3": digest}))
    code, _, err = run(capsys, "merge", "base.ckpt", "own", "merged", "--to", "stability")
    assert (code, err) == (0, "")
    assert open_source(folder / "merged").record == TRAINED
    assert run(capsys, "convert", "foreign", "foreign.ckpt", "--to", "mindone")[0] == 0
    fault = f"was trained on weights with xxh3 {other}, but base.ckpt has {base}; give those weights"
    code, _, err = run(capsys, "merge", "base.ckpt", "foreign.ckpt", "again", "--to", "stability")
    assert (code, err.count("\n")) == (0, 1)
    assert err.startswith("vpred-weights: warning: ")
    assert fault in err

    for lora, warnings in (("own", 0), ("foreign", 1), ("plain.safetensors", 0)):
        words = ["--ckpt", "base.ckpt", "--lora", lora, "--prompt", "a cat"]
        (request,) = plan(build_parser().parse_args(words))
        warn_of_other_base(request)
        assert capsys.readouterr().err.count("warning: ") == warnings
        assert request.record.base_xxh3 is None
    recipe = build_document(TrainConfig, {**RECIPE, "model": MODEL.model_dump()}, Path("recipe"))
    found = Named(folder / "base.ckpt", "auto", folder / "foreign", recipe)
    with pytest.raises(ConfigError, match=f"xxh3 {other}, but .*base.ckpt has {base}"):
        choose(build_parser().parse_args(["--prompt", "a cat"]), found)
    trained_whole = Named(found.weights, "auto", found.lora, recipe.model_copy(update={"lora": None}))
    assert choose(build_parser().parse_args(["--prompt", "a cat"]), trained_whole).xxh3 == base


def test_convert_and_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "convert", "lora.safetensors", "sd-72.ckpt", "--to", "mindone")
    assert (code, out) == (0, "sd-72.ckpt: LoRA, mindone layout, from stability of lora.safetensors\n")
    assert_same(read_factors(open_lora(folder / "sd-72.ckpt")), FACTORS)
    code, out, _ = run(capsys, "inspect", "sd-72.ckpt")
    assert code == 0
    assert "sd-72.ckpt: LoRA, mindone layout in mindspore\n   unet: 128 matrices adapted\n   text_encoder: 46" in out
    assert "ranks [4], scales [1.0]" in out
    assert "v-prediction, 900 samples seen" in out
    assert "fits the model" in out
    save_file(GOOD, "x")
    code, out, _ = run(capsys, "inspect", "x", "--json")
    assert (code, "for a matrix 1280x1280" in out) == (0, True)  # it tells no model, so SD2's is expected


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["merge", "absent", "lora.safetensors", "new", "--to", "stability"], "absent: cannot be read"),
        (["merge", "base.ckpt", "absent", "new", "--to", "stability"], "absent: cannot be read"),
        (["merge", "base.ckpt", "base.ckpt", "new", "--to", "stability"], "base.ckpt: holds no LoRA weights"),
        (["merge", "lora.safetensors", "lora.safetensors", "new", "--to", "stability"], "give full weights here"),
        (["merge", "base.ckpt", "lora.safetensors", "base.ckpt", "--to", "mindone"], "base.ckpt: exists already"),
        (["merge", "base.ckpt", "other", "new", "--to", "mindone"], "was trained on weights that predict eps, but"),
        (
            ["merge", "base.ckpt", "bad", "new", "--to", "stability"],
            "bad: does not fit the model (1): unknown unet.what",
        ),
        (
            ["convert", "lora.safetensors", "new", "--to", "mindone"],
            "new: MindSpore loads only names that end with .ckpt",
        ),
        (["convert", "lora.safetensors", "a/b/new", "--to", "diffusers"], "a/b/new: cannot be written"),
        (
            ["convert", "lora.safetensors", "new", "--to", "stability", "--weights", "ema"],
            "holds LoRA weights; leave out",
        ),
    ],
)
def test_mistakes_are_one_line(words: list[str], fault: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_lora(folder / "other", FACTORS, "stability", told("eps"))
    save_file({"unet.what.lora_A.weight": np.zeros((2, 2), np.float32)}, folder / "bad")
    before = sorted(folder.iterdir())
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("vpred-weights: ")
    assert err.count("\n") == 1
    assert fault in err
    assert sorted(folder.iterdir()) == before


def test_an_image_remembers_its_lora(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--ckpt", "base.ckpt", "--lora", "lora.safetensors", "--lora-scale", "0.5", "--prompt", "a cat"]
    (request,) = plan(build_parser().parse_args(asked))
    assert request.lora is not None
    assert (request.lora.path, request.lora.scale) == (folder / "lora.safetensors", 0.5)
    assert request.lora.xxh3 == weights_digest(folder / "lora.safetensors")
    assert (request.record, request.height) == (TRAINED, 512)
    Image.new("RGB", (8, 8)).save("picture.png", pnginfo=request.png_text())
    assert plan(build_parser().parse_args(["--like", "picture.png"])) == [request]
    (folder / "lora.safetensors").rename("moved")
    assert plan(build_parser().parse_args(["--like", "picture.png", "--lora", "moved"])) == [
        request.model_copy(update={"lora": request.lora.model_copy(update={"path": folder / "moved"})})
    ]
    for words, message in (
        (["--like", "picture.png"], f"{folder / 'lora.safetensors'}: cannot be read (No such file or directory); name"),
        (["--like", "picture.png", "--lora", "plain.safetensors"], "plain.safetensors: xxh3 is "),
        (
            ["--like", "picture.png", "--lora-scale", "1"],
            "--like: takes all settings from its image; leave out --lora-",
        ),
        ([*asked[:2], "--lora", "no", "--prompt", "a"], "no: no such file or folder; give LoRA weights"),
        ([*asked[:2], *asked[4:]], "--lora-scale: goes with --lora; give both or none"),
        (["--lora", "moved", "--prompt", "a"], "no weights: give --run RUN_DIR, --ckpt FILE or --like IMAGE"),
    ):
        assert refused(capsys, tmp_path, *words).startswith(message)
