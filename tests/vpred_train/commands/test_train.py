"""What users get wrong in a recipe: one clear line and exit code 2; and what the reading commands print."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from launcher.contract.config import load_document
from support import CHECKOUT
from support.weights_files import write_tiny
from vpred_train.commands.train import main
from vpred_train.config.train import TrainConfig
from vpred_train.optim.learning_rate import learning_rate

DEMO = CHECKOUT / "vpred_train" / "recipes" / "tiny_emoji.yaml"


def ends_with(code: int, *arguments: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == code


def test_the_demonstration_is_valid_and_its_data_is_good() -> None:
    ends_with(0, "--check", "--recipe", str(DEMO), "--world-size", "2")


def test_every_other_recipe_is_valid_with_weights_and_data(tmp_path: Path) -> None:
    write_tiny(tmp_path / "published", "diffusers")
    given = [f"pretrained.path={tmp_path / 'published'}", f"data.path={DEMO.parents[2] / 'data' / 'fluent_emoji'}"]
    recipes = {recipe.stem: recipe for recipe in DEMO.parent.glob("*.yaml") if recipe != DEMO}
    assert set(recipes) == {"mlperf_sd2", "sd2_512_v", "sd2_768_v", "sd2_768_v_lora"}
    for name, recipe in recipes.items():
        narrow = ["lora.rank=2"] if name.endswith("lora") else []
        ends_with(0, "--check", "--recipe", str(recipe), "--world-size", "8", *given, *narrow)


def test_a_recipe_for_published_weights_asks_for_paths(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, "--check", "--recipe", str(DEMO.with_name("sd2_768_v.yaml")))
    asked = [line.split(": ")[1] for line in capsys.readouterr().err.splitlines()]
    assert asked == ["data.path", "pretrained.path"]


def test_the_benchmarks_learning_rate_follows_the_batch() -> None:
    paths = ["data.path=.", "pretrained.path=."]
    config = load_document(TrainConfig, DEMO.with_name("mlperf_sd2.yaml"), paths)
    assert learning_rate(config, 1000 * 2048) == pytest.approx(1.25e-7 * 2048, rel=1e-12)
    assert learning_rate(config, config.total_samples) == pytest.approx(2.56e-4, rel=1e-12)
    assert (config.total_steps, config.data.caption_drop, config.optimizer.max_grad_norm) == (2250, 0, float("inf"))


def test_mindones_flags_do_not_go_with_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, "--check", "--recipe", str(DEMO), "--epochs", "3")
    assert "--recipe: does not go with MindONE's flags" in capsys.readouterr().err
    (tmp_path / "theirs.yaml").write_text("epochs: 2000\n")
    data = ["--data_path", str(DEMO.parents[2] / "data" / "fluent_emoji"), "--pretrained_model_path", "none.ckpt"]
    ends_with(2, "--check", "--train_config", str(tmp_path / "theirs.yaml"), *data)
    assert "theirs.yaml: image_filter_size: 48 of 48 images" in capsys.readouterr().err
    ends_with(2, "--check", "--train_config", str(tmp_path / "theirs.yaml"), *data, "--filter_small_size", "False")
    assert "none.ckpt: cannot be read" in capsys.readouterr().err


def test_a_dtype_is_checked_for_the_accelerator_where_one_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("--check", "--recipe", str(DEMO), "precision.compute_dtype=bfloat16")
    ends_with(0, *given)
    ends_with(0, *given, "--accelerator", "ascend")
    capsys.readouterr()
    ends_with(2, *given, "--accelerator", "cpu")
    message = capsys.readouterr().err
    assert message.startswith("precision.compute_dtype: found 'bfloat16', in which accelerator cpu does not compute")
    assert message.count("\n") == 1


def test_the_printed_recipe_loads_back_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, "--print-config", "--recipe", str(DEMO), "optimizer.learning_rate=5e-4")
    text = capsys.readouterr().out
    (tmp_path / "resolved.yaml").write_text(text)
    resolved = load_document(TrainConfig, tmp_path / "resolved.yaml")
    assert resolved.optimizer.learning_rate == 5e-4
    assert resolved.data.path == (DEMO.parents[2] / "data" / "fluent_emoji").resolve()
    assert yaml.safe_load(text)["data"]["resolution"] == 32


def test_an_overriding_path_counts_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ends_with(0, "--print-config", "--recipe", str(DEMO), "data.path=mine")
    assert yaml.safe_load(capsys.readouterr().out)["data"]["path"] == str(tmp_path / "mine")


def test_the_schema_names_every_section(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, "--print-schema")
    keys = json.loads(capsys.readouterr().out)["properties"]
    assert {"data", "model", "objective", "optimizer", "ema", "checkpoint", "sampling"} <= set(keys)
    assert "training samples" in keys["total_samples"]["description"]


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("optimizer.learning_rat=1", ("optimizer.learning_rat", "learning_rate")),
        ("optimizer.learning_rate=fast", ("optimizer.learning_rate", "fast")),
        ("seed=-1", ("seed", "-1")),
        ("sampling.sampler=dpm", ("sampling.sampler", "dpm", "dpmpp_2m")),
        ("total_samples=100", ("total_samples 100", "global_batch")),
        ("schedule.warmup_samples=99999999", ("schedule.warmup_samples 99999999", "the run's 27200 samples")),
        ("schedule.warmup_samples=27200", ("schedule.warmup_samples 27200", "the run's 27200 samples")),
        ("schedule={warmup_steps: 1700}", ("schedule.warmup_steps 1700", "the run's 1700 steps")),
        ("schedule.warmup_steps=9", ("warmup_samples is 800 and warmup_steps is 9", "give one of them")),
        ("schedule.power=2", ("power is 2.0, but cosine has none", "leave it 1.0 or use polynomial")),
        ("schedule={name: multi_step}", ("multi_step has no milestones", "milestones_steps")),
        ("schedule={name: multi_step, milestones_steps: [3, 2]}", ("milestones_steps is [3, 2]", "rising")),
        ("schedule={name: multi_step, milestones_steps: [1700]}", ("schedule.milestones_steps 1700", "1700 steps")),
        ("schedule.name=cosin", ("schedule.name", "'cosin'", "cosine")),
        ("optimizer.momentum=0.9", ("momentum is 0.9, but adamw has none", "leave it 0.0 or use sgd")),
        ("optimizer.name=sgd", ("betas is (0.9, 0.99), but sgd has none", "adam_weight_decay")),
        ("optimizer.betas=[0.9, 1]", ("optimizer.betas", "1")),
        ("ema.profiles=[power]", ("decay is 0.995, but power has none", "leave it 0.9999")),
        ("ema.profiles=[constant, constant]", ("profiles is ['constant', 'constant']", "give each once")),
        ("ema.use=power_0.05", ("use is 'power_0.05'; tracked are constant",)),
        ("ema.sigma_rel=[0.3]", ("ema.sigma_rel[0]", "0.3")),
        ("ema.snapshot_every_samples=800", ("snapshot_every_samples is 800, but constant has none", "power")),
        ("ema={profiles: [power], sigma_rel: [0.1], snapshot_every_samples: 1}", ("sigma_rel is [0.1]", "two")),
        ("data.resolution=30", ("data.resolution 30",)),
        ("model.unet.in_channels=3", ("unet.in_channels is 3", "space_to_depth")),
        ("model.unet.norm_groups=7", ("norm_groups 7",)),
        ("model.vae={}", ("space_to_depth is 4, but there is a vae",)),
        ("trainable=[unet]", ("the text_encoder would stay random", "add it to trainable")),
        ("diffusion.prediction_type=eps", ("prediction_type is 'eps' with zero_terminal_snr",)),
        ("objective.weight=minsnr", ("objective.weight", "minsnr", "did you mean 'min_snr'")),
        ("objective.gamma=5", ("gamma is 5.0, but weight uniform has none", "min_snr, soft_min_snr, p2")),
        ("objective={weight: min_snr, gamma: 0}", ("objective.gamma", "greater than 0")),
        ("objective.weight=min_snr", ("objective.weight min_snr is 0", "set objective.terminal_floor")),
        ("objective={weight: snr_trunc, terminal_floor: 0.5}", ("terminal_floor is 0.5, but weight snr_trunc",)),
        ("objective={weight: min_snr, terminal_floor: 2}", ("objective.terminal_floor", "less than or equal to 1")),
        ("objective.offset_noise=-0.1", ("objective.offset_noise", "-0.1")),
        ("objective.input_perturbation=.inf", ("objective.input_perturbation", "finite")),
        ("objective.logit_mean=0.5", ("logit_mean is 0.5, but timestep_distribution is uniform", "logit_normal")),
        ("objective.timestep_distribution=lognormal", ("timestep_distribution", "lognormal", "logit_normal")),
        ("pretrained.path=none.safetensors", ("none.safetensors: cannot be read", "set pretrained.path")),
        ("validation={every_samples: 800}", ("validation has no images", "give one of share, count and path")),
        ("validation={every_samples: 800, share: 0.1, count: 4}", ("validation has share and count", "give one")),
        ("validation={every_samples: 800, share: 1}", ("validation.share", "less than 1")),
        ("validation={every_samples: 800, count: 4, bins: 1001}", ("validation.bins 1001 is above", "1000")),
        ("validation={every_samples: 800, count: 48}", ("fluent_emoji: 48 of 48 samples would be held out",)),
        ("validation={every_samples: 800, share: 0.05}", ("1 image is held out, which has no standard error",)),
        ("validation={every_samples: 800, path: none}", ("none: no such folder",)),
        ("validation={every_samples: 800, path: data/fluent_emoji}", ("48 images are trained on", "give others")),
        ("previews={every_samples: 800}", ("previews has neither prompts nor count",)),
        ("previews={every_samples: 800, prompts: [a], count: 1}", ("1 prompts and count 1; give one of them",)),
        ("data=5", ("data", "5")),
        ("nonsense", ("nonsense", "section.key=value")),
        ("optimizer.betas=[0.9]", ("optimizer.betas[1]: found nothing",)),
        (f"seed={1 << 64}", ("seed: found 18446744073709551616", "less than 18446744073709551616")),
        ("seed=-1", ("seed: found -1", "greater than or equal to 0")),
        (f"sampling.seed={1 << 63}", ("sampling.seed", "less than 9223372036854775808")),
        (f"total_samples={1 << 60}", ("total_samples", "less than or equal to 9007199254740992")),
        ("optimizer.learning_rate=.inf", ("optimizer.learning_rate: found Infinity", "finite number")),
        ("optimizer.learning_rate=1e-300", ("optimizer.learning_rate: found 1e-300", "used in float32")),
        ("optimizer.epsilon=1e-40", ("optimizer.epsilon: found 1e-40", "used in float32")),
        ("sampling.guidance_scale=.nan", ("sampling.guidance_scale: found NaN", "finite number")),
        ("diffusion.beta_start=1e-20", ("diffusion.beta_start: found 1e-20", "than or equal to 0.00000001")),
        ("diffusion={beta_end: 0.99}", ("diffusion: 1000 timesteps up to beta_end 0.99 leave nothing", "lower one")),
        (
            "diffusion={timesteps: 1, zero_terminal_snr: true}",
            ("timesteps is 1, and zero_terminal_snr moves", "2 or more"),
        ),
        ("data.resolution=1000000", ("data.resolution", "less than or equal to 16384")),
        ("data.workers=100000", ("data.workers", "less than or equal to 1024")),
    ],
)
def test_mistakes_in_a_recipe(override: str, fragments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, "--check", "--recipe", str(DEMO), override)
    message = capsys.readouterr().err
    assert len(message.strip().splitlines()) == 1
    for fragment in fragments:
        assert fragment in message


def test_a_batch_that_cannot_be_shared_out(capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, "--check", "--recipe", str(DEMO), "--world-size", "3", "global_batch=16", "total_samples=16000")
    assert "found 16 for 3 ranks (must be a multiple of 3); give 15 or 18" in capsys.readouterr().err


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(2, "--check", "--recipe", str(tmp_path / "none.yaml"))
    assert "none.yaml" in capsys.readouterr().err
    ends_with(2, "--check", "--recipe", str(DEMO), f"data.path={tmp_path / 'none'}")
    assert "no such folder" in capsys.readouterr().err
    ends_with(2, "--check")
    assert "--recipe is missing" in capsys.readouterr().err
    ends_with(2, "--recipe", str(DEMO))
    assert "--run-dir is missing" in capsys.readouterr().err


def test_bad_rows_are_all_listed_before_training(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:40])
    (tmp_path / "img_txt.csv").write_text("dir,text\ngood.png,fine\ncut.png,cut\ngone.png,gone\n")
    ends_with(2, "--check", "--recipe", str(DEMO), f"data.path={tmp_path}")
    message = capsys.readouterr().err
    assert "img_txt.csv:3: cut.png" in message
    assert "img_txt.csv:4: gone.png" in message


def test_a_run_directory_of_another_recipe_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends_with(0, "--print-config", "--recipe", str(DEMO), "seed=5")
    (tmp_path / "train.yaml").write_text(capsys.readouterr().out)
    ends_with(2, "--recipe", str(DEMO), "--run-dir", str(tmp_path))
    assert "belongs to a different recipe" in capsys.readouterr().err
