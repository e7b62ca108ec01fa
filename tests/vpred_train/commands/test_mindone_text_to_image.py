"""MindONE's flags arrive at vpred-sample, or are answered with what to do."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from launcher.contract.exit_codes import ExitCode
from vpred_train.commands import mindone_text_to_image as mindone_images
from vpred_train.commands import sample
from vpred_train.diffusion.samplers.registry import SAMPLERS
from vpred_train.weights.layouts.weight_source import Source


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str, version: Sequence[str] = ("--version", "2.1-v")) -> list[str]:
    """What vpred-sample would be called with."""
    called: list[list[str]] = []
    monkeypatch.setattr(sample, "main", called.append)
    mindone_images.main(["--ckpt_path", "w.safetensors", *version, *arguments])
    (words,) = called
    return words


def test_the_defaults_are_mindones(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = sample.build_parser().parse_args(run(monkeypatch))
    assert arguments.prompt == ["A cute wolf in winter forest"]
    assert arguments.ckpt == Path("w.safetensors")
    assert (arguments.output, arguments.grid) == (Path("output/samples"), Path("output/grids/grid_00000.png"))
    assert (arguments.steps, arguments.guidance_scale, arguments.seed) == (20, 9.0, 42)
    assert (arguments.images_per_prompt, arguments.batch_size) == (8, 4)
    assert (arguments.sampler, arguments.height, arguments.width) == ("dpmpp_2m", None, None)
    assert (arguments.prediction_type, arguments.resolution, arguments.negative_prompt) == ("v", 768, "")


def test_a_command_of_mindones_readme(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = run(
        monkeypatch, "--data_path", "prompts.txt", "--negative_prompt", "ugly", "--output_path", "out",
        "--config", "configs/v2-vpred-inference.yaml", "--n_iter", "1", "--n_samples", "2", "--scale", "7.5",
        "--H", "768", "--W", "704", "--sampling_steps", "15", "--seed", "1", "--ddim",
        "--device_target", "CPU", "--skip_grid", version=(),
    )  # fmt: skip
    arguments = sample.build_parser().parse_args(words)
    assert arguments.prompts_file == Path("prompts.txt")
    assert arguments.prompt is None
    assert arguments.negative_prompt == "ugly"
    assert arguments.output == Path("out/samples")
    assert (arguments.images_per_prompt, arguments.batch_size, arguments.steps, arguments.seed) == (2, 2, 15, 1)
    assert (arguments.guidance_scale, arguments.sampler) == (7.5, "ddim")
    assert (arguments.height, arguments.width) == (768, 704)
    assert (arguments.prediction_type, arguments.resolution) == ("v", 768)
    notes = capsys.readouterr().err.splitlines()
    assert {note.split()[1] for note in notes} == {"--device_target"}
    assert arguments.grid is None


def test_a_grid_never_replaces_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "grids").mkdir()
    for name in ("grid_00003.png", "grid_.png", "grid_x.png", "00009.png"):
        (tmp_path / "grids" / name).touch()
    for flags, expected in (
        ((), tmp_path / "grids" / "grid_00004.png"),
        (("--skip_grid", "False"), tmp_path / "grids" / "grid_00004.png"),
        (("--skip_grid",), None),
    ):
        words = run(monkeypatch, "--output_path", str(tmp_path), *flags)
        assert sample.build_parser().parse_args(words).grid == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--use_lora", "True"], "--use_lora: goes with --lora_ckpt_path; give the file of LoRA weights"),
        (["--check_safety"], "--check_safety: there is no support for the safety checker here; leave it out"),
        (["--version", "1.5"], "error: argument -v/--version: invalid choice: '1.5'"),
        (["--config", "my.yaml"], "--config: found my.yaml (known: v2-inference.yaml, v2-vpred-inference.yaml)"),
        ([], "w.safetensors: cannot be read"),
        (["--ddim", "--plms"], "--ddim and --plms: give one sampler"),
    ],
)
def test_what_would_change_the_picture_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        mindone_images.main(["--ckpt_path", "w.safetensors", *arguments])
    assert end.value.code == ExitCode.BAD_CONFIG
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_every_sampler_flag_names_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    for flag in ("dpm_solver", "plms", "uni_pc", "ddim"):
        words = run(monkeypatch, f"--{flag}", "--ddim_eta", "0.5")
        arguments = sample.build_parser().parse_args(words)
        assert arguments.sampler in SAMPLERS
        assert arguments.eta == (0.5 if flag == "ddim" else None)


def test_weights_that_tell_nothing_are_mindones_default(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    source = Source(tmp_path, "stability", "safetensors", {}, None)
    monkeypatch.setattr(mindone_images, "open_base", lambda path, lora: source)
    words = run(monkeypatch, "--negative_data_path", "no.txt", version=())
    arguments = sample.build_parser().parse_args(words)
    assert (arguments.prediction_type, arguments.resolution) == ("eps", 512)
    assert (arguments.negative_prompts_file, arguments.negative_prompt) == (Path("no.txt"), None)
    assert "2.1 is taken" in capsys.readouterr().err


def test_lora_is_added_when_switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    file = ("--lora_ckpt_path", "sd-72.ckpt", "--lora_scale", "0.7", "--lora_rank", "128")
    arguments = sample.build_parser().parse_args(run(monkeypatch, "--use_lora", "True", *file))
    assert (arguments.lora, arguments.lora_scale) == (Path("sd-72.ckpt"), 0.7)
    arguments = sample.build_parser().parse_args(run(monkeypatch, "--use_lora", "False", *file))
    assert (arguments.lora, arguments.lora_scale) == (None, None)
