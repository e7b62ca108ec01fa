"""vpred-weights: what it prints, what it writes and how it ends."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from launcher.contract.config import ConfigError
from support.command_lines import run
from support.weights_files import MODEL, RECORD, SHAPES, networks, random_tensors, write_diffusers
from vpred_train.config.model import ModelConfig
from vpred_train.weights.layouts.read_write import read_weights, write_weights
from vpred_train.weights.layouts.weight_source import Source, open_source
from vpred_train.weights.record_lookup import Told, needed_record, record_for

TENSORS = random_tensors()


@pytest.fixture
def mindone(tmp_path: Path) -> Path:
    write_weights(tmp_path / "sd.ckpt", TENSORS, "mindone", RECORD)
    return tmp_path / "sd.ckpt"


def test_inspect(mindone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "inspect", mindone)
    assert code == 0
    assert "mindone layout in mindspore, ema weights" in out
    assert "unet: 686 tensors" in out and "v-prediction, 80 samples seen" in out and "fits the model" in out
    code, out, _ = run(capsys, "inspect", mindone, "--json")
    report = json.loads(out)
    assert (code, report["layout"], report["sets"], report["dtypes"]) == (0, "mindone", ["ema"], {"float32": 1214})
    assert {network: counts["tensors"] for network, counts in report["networks"].items()} == {
        "unet": 686, "vae": 248, "text_encoder": 280,
    }  # fmt: skip
    assert report["bytes"] == 4 * sum(counts["parameters"] for counts in report["networks"].values())
    assert report["record"]["resolution"] == 768


def test_inspect_tells_what_does_not_fit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file(TENSORS | {"betas": np.zeros(3)}, tmp_path / "x")
    code, out, _ = run(capsys, "inspect", tmp_path / "x", "--json")
    report = json.loads(out)
    assert (code, report["unused"], report["sets"], report["record"]) == (0, 1, ["unlabelled"], None)
    assert "1207 wrongly shaped" in report["fault"]


def test_a_round_through_all_layouts_changes_nothing(
    mindone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, single, back = tmp_path / "folder", tmp_path / "x.safetensors", tmp_path / "back.ckpt"
    for source, target, layout in (
        (mindone, folder, "diffusers"),
        (folder, single, "stability"),
        (single, back, "mindone"),
    ):
        code, out, _ = run(capsys, "convert", source, target, "--to", layout)
        assert (code, "1214 tensors" in out) == (0, True)
        assert open_source(target).record == RECORD
    assert back.read_bytes() == mindone.read_bytes()
    assert run(capsys, "compare", folder, back)[:2] == (0, "equal: 1214 tensors, none differs by more than 0\n")


def test_compare_tells_differences(mindone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(SHAPES))
    changed = TENSORS[name].copy()
    changed.flat[3] += 0.5
    write_weights(tmp_path / "other", TENSORS | {name: changed}, "stability", RECORD)
    code, out, _ = run(capsys, "compare", mindone, tmp_path / "other", "--json")
    report: dict[str, Any] = json.loads(out)
    assert (code, report["equal"], report["tensors"], list(report["differing"])) == (1, False, 1214, [name])
    assert report["differing"][name] == pytest.approx(0.5, abs=1e-6)
    code, out, _ = run(capsys, "compare", mindone, tmp_path / "other")
    assert (code, f"different: 1 of 1214 tensors\n   {name}: 0.5" in out) == (1, True)
    assert run(capsys, "compare", mindone, tmp_path / "other", "--tolerance", "0.51")[0] == 0


def test_not_a_number_is_a_difference(mindone: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = next(iter(SHAPES))
    write_weights(tmp_path / "other", TENSORS | {name: np.full_like(TENSORS[name], np.nan)}, "stability", RECORD)
    code, out, _ = run(capsys, "compare", mindone, tmp_path / "other", "--tolerance", "100")
    assert (code, f"{name}: nan" in out) == (1, True)


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["inspect", "absent"], "absent: cannot be read"),
        (["convert", "sd.ckpt", "sd.ckpt", "--to", "mindone"], "sd.ckpt: exists already; give a new path"),
        (["convert", "sd.ckpt", "new", "--to", "stability", "--weights", "raw"], "holds ema weights, not raw"),
        (["convert", "sd.ckpt", "new", "--to", "mindone"], "new: MindSpore loads only names that end with .ckpt"),
        (["convert", "sd.ckpt", "a/b/new", "--to", "stability"], "a/b/new: cannot be written"),
        (["convert", "sd.ckpt", "a/b/new", "--to", "diffusers"], "a/b/new: cannot be written"),
        (
            ["convert", "sd.ckpt", "new", "--to", "diffusers", "--prediction-type", "eps"],
            "sd.ckpt: tells v-prediction with zero terminal SNR, but --prediction-type tells eps; leave it out",
        ),
        (["convert", "sd.ckpt", "new", "--to", "diffusers", "--zero-terminal-snr"], "goes with --prediction-type"),
        (["probe", "sd.ckpt", "--data", "absent"], "absent: no such folder"),
        (["compare", "sd.ckpt", "pixels"], "tensors are in one of the two only"),
    ],
)
def test_user_errors_are_one_line(
    words: list[str], fault: str, mindone: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(mindone.parent)
    in_pixels = {name: array for name, array in TENSORS.items() if not name.startswith("first_stage_model.")}
    record = RECORD.model_copy(update={"model": MODEL.model_copy(update={"vae": None, "space_to_depth": 2})})
    unet = record.model.unet.model_copy(update={"in_channels": 12})
    record = record.model_copy(update={"model": record.model.model_copy(update={"unet": unet})})
    first, last = "model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.2"
    ends = {first: (8, 12, 3, 3), f"{last}.weight": (12, 8, 3, 3), f"{last}.bias": (12,)}
    pixels = in_pixels | {name: np.zeros(shape, np.float32) for name, shape in ends.items()}
    write_weights(Path("pixels"), pixels, "stability", record)
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("vpred-weights: ") and err.count("\n") == 1 and fault in err
    assert sorted(path.name for path in mindone.parent.iterdir()) == ["pixels", "sd.ckpt"]


def test_the_record_of_published_weights(tmp_path: Path) -> None:
    """Told by the command line, or by a diffusers folder's scheduler; otherwise unknown."""
    single = Source(tmp_path, "stability", "safetensors", {}, None)
    assert record_for(single, "auto", None) is None
    with pytest.raises(ConfigError, match="does not tell what the network predicts; give --prediction-type"):
        needed_record(single, "auto", None)
    record = needed_record(single, "auto", Told("v", zero_terminal_snr=True, resolution=512))
    assert (record.model, record.resolution, record.diffusion.zero_terminal_snr) == (ModelConfig(), 512, True)

    folder = Source(tmp_path, "diffusers", "safetensors", {}, None)
    assert record_for(folder, "auto", None) is None
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text('{"sample_size": 64}')
    told = {
        "prediction_type": "v_prediction",
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    scheduler = tmp_path / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(told | {"rescale_betas_zero_snr": True}))
    record = needed_record(folder, "auto", None)
    assert (record.resolution, record.diffusion.zero_terminal_snr, record.weights) == (512, True, "raw")
    assert needed_record(folder, "auto", Told("v", zero_terminal_snr=True, resolution=768)) == record
    scheduler.write_text(json.dumps(told | {"prediction_type": "epsilon"}))
    assert needed_record(folder, "auto", None).diffusion.prediction_type == "eps"
    with pytest.raises(ConfigError, match="tells eps-prediction, but --prediction-type tells v"):
        record_for(folder, "auto", Told("v", zero_terminal_snr=False, resolution=512))
    for key, value, fault in (
        ("beta_start", 3, r"scheduler_config\.json: beta_start"),
        ("beta_schedule", "linear", "beta_schedule: found 'linear'"),
        ("prediction_type", "flow", "prediction_type: found 'flow'"),
    ):
        scheduler.write_text(json.dumps(told | {key: value}))
        with pytest.raises(ConfigError, match=fault):
            record_for(folder, "auto", None)


def test_a_folder_that_others_made_is_read(tmp_path: Path) -> None:
    write_diffusers(tmp_path / "sd", networks(TENSORS))
    assert open_source(tmp_path / "sd", MODEL).record is None
    assert len(read_weights(tmp_path / "sd", model=MODEL)) == 1214
