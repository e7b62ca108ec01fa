"""MindONE's keys as a document of ours: quantities by hand, and every key honoured or answered with the reason."""

from pathlib import Path
from typing import Any

import pytest

from data.sources import scan
from launcher.contract.config import ConfigError, build_document, dump_yaml, load_document
from support.jobs import write_images
from support.weights_files import write_tiny
from vpred_train.commands.train import build_parser
from vpred_train.config.train import TrainConfig
from vpred_train.prepare.data import open_data
from vpred_train.prepare.mindone_keys import Flag, MindoneRecipe, read_mindone
from vpred_train.prepare.mindone_recipe import TABLE, Setting, Within, notes, translate
from vpred_train.prepare.recipe import from_mindone

POKEMON = Setting(samples=833, small=0, world_size=8)
VANILLA = """
mode: 0
use_parallel: False
num_workers: 1
train_batch_size: 1
image_size: 768
image_filter_size: 256
model_config: "configs/v2-vpred-train.yaml"
ckpt_save_interval: 5
epochs: 20
use_ema: True
clip_grad: False
scheduler: "cosine_decay"
start_learning_rate: 1e-5
end_learning_rate: 1e-7
warmup_steps: 1000
decay_steps: 0
optim: adamw
betas: [0.9, 0.98]
weight_decay: 0.01
"""


def translated(tmp_path: Path, *flags: Flag, text: str = VANILLA, setting: Setting = POKEMON) -> TrainConfig:
    (tmp_path / "train.yaml").write_text(text)
    given = (("pretrained_model_path", "sd.ckpt"), ("data_path", "pokemon"), *flags)
    recipe = read_mindone(tmp_path / "train.yaml", given)
    return build_document(TrainConfig, translate(recipe, setting), tmp_path / "train.yaml")


def test_every_key_has_a_rule_and_a_flag() -> None:
    names = {info.alias or name for name, info in MindoneRecipe.model_fields.items()}
    assert set(TABLE) == names
    readers = {rule.reader for rule in TABLE.values() if isinstance(rule, Within)}
    assert all(reader in TABLE or reader.startswith("the run directory") for reader in readers)
    help_text = build_parser().format_help()
    assert all(f"--{name} " in help_text for name in names)


def test_the_vanilla_recipe_on_eight_cards(tmp_path: Path) -> None:
    config = translated(tmp_path)
    steps_per_epoch = 104  # of 833 samples in batches of 8, one sample being left over
    assert (config.global_batch, config.total_steps) == (8, 20 * steps_per_epoch)
    assert config.checkpoint.every_samples == 5 * steps_per_epoch * 8
    assert config.checkpoint.mindone_unit_samples == steps_per_epoch * 8
    assert (config.seed, config.data.resolution, config.data.crop) == (3407, 768, "center")
    assert (config.data.caption_drop, config.data.horizontal_flip) == (0, False)
    assert config.data.path == Path.cwd() / "pokemon"
    assert config.pretrained is not None
    assert config.pretrained.path == Path.cwd() / "sd.ckpt"
    assert config.pretrained.networks == ("unet", "text_encoder", "vae")
    assert config.diffusion.prediction_type == "v"
    optimizer, schedule = config.optimizer, config.schedule
    assert (optimizer.name, optimizer.epsilon, optimizer.betas) == ("adam_weight_decay", 1e-6, (0.9, 0.98))
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.reference_batch) == (1e-5, 0.01, None)
    assert optimizer.max_grad_norm == float("inf")
    assert (schedule.name, schedule.warmup_steps, schedule.final_learning_rate) == ("cosine", 1000, 1e-7)
    assert (config.ema.profiles, config.ema.decay) == (("mindone",), 0.9999)
    assert (config.trainable, config.lora) == (("unet",), None)


def test_the_printed_document_loads_back_equal(tmp_path: Path) -> None:
    config = translated(tmp_path)
    (tmp_path / "ours.yaml").write_text(dump_yaml(config))
    assert load_document(TrainConfig, tmp_path / "ours.yaml") == config


def test_flags_win_over_the_file_and_steps_over_epochs(tmp_path: Path) -> None:
    flags = [("train_batch_size", "4"), ("step_mode", "True"), ("ckpt_save_interval", "50"), ("warmup_steps", "0")]
    config = translated(tmp_path, *flags, ("clip_grad", "True"), ("random_crop", "True"), ("use_ema", "False"))
    assert (config.global_batch, config.total_samples) == (32, 20 * 26 * 32)
    assert (config.checkpoint.every_samples, config.checkpoint.mindone_unit_samples) == (50 * 32, 32)
    assert (config.data.crop, config.data.horizontal_flip) == ("random", True)
    assert (config.optimizer.max_grad_norm, config.ema.decay) == (1.0, 0.0)


def test_lora_and_what_comes_with_it(tmp_path: Path) -> None:
    flags = [("use_lora", "True"), ("lora_rank", "128"), ("lora_scale", "0.5"), ("lora_ft_text_encoder", "True")]
    config = translated(tmp_path, *flags)
    assert config.lora is not None
    assert (config.lora.rank, config.lora.scale, config.trainable) == (128, 0.5, ("unet", "text_encoder"))


@pytest.mark.parametrize(
    ("flag", "place", "expected"),
    [
        (("optim", "momentum"), "optimizer", {"name": "sgd", "momentum": 0.9}),
        (("scheduler", "constant"), "schedule", {"name": "constant", "final_learning_rate": 0.0}),
        (("decay_steps", "1080"), "schedule", {"name": "cosine"}),  # 20 x 104 - 1000
        (("model_config", "v2-train.yaml"), "diffusion", {"prediction_type": "eps"}),
        (("unet_initialize_random", "True"), "pretrained", {"networks": ("text_encoder", "vae")}),
        (("data_path", "1"), "data", {"path": Path.cwd() / "1"}),
        (("resume", "True"), "data", {}),
        (("epochs", "20"), "precision", {"loss_scaling": "dynamic", "init_loss_scale": 65536, "loss_scale_factor": 2}),
        (("scale_window", "200"), "precision", {"loss_scale_window_steps": 200}),
        (("loss_scaler_type", "static"), "precision", {"loss_scaling": "static", "init_loss_scale": 65536}),
    ],
)
def test_other_values(flag: Flag, place: str, expected: dict[str, Any], tmp_path: Path) -> None:
    section = getattr(translated(tmp_path, flag), place)
    assert {key: getattr(section, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("flag", "fragments"),
    [
        (("gradient_accumulation_steps", "4"), ("found 4", "not accumulated")),
        (("enable_modelarts", "True"), ("found True", "every host sees")),
        (("resume", "out/train_resume.ckpt"), ("'out/train_resume.ckpt'", "the same command")),
        (("profile", "True"), ("found True", "no profiler")),
        (("custom_text_encoder", "cn_clip"), ("'cn_clip'", "SD2's")),
        (("model_config", "configs/v1-train.yaml"), ("'configs/v1-train.yaml'", "known: v2-vpred-train.yaml")),
        (("pretrained_model_path", ""), ("found nothing", "start from")),
        (("optim", "adam"), ("'adam'", "give adamw")),
        (("optim", "lion"), ("'lion'", "known: adam, adamw, sgd, momentum")),
        (("scheduler", "polynomial_decay"), ("'polynomial_decay'", "cosine_decay")),
        (("decay_steps", "500"), ("found 500", "give 0 or 1080")),
        (("warmup_steps", "2080"), ("found 2080", "only 2080 steps")),
        (("train_batch_size", "105"), ("found 105 for 8 ranks", "833 samples")),
        (("train_batch_size", "0"), ("found 0", "greater than 0")),
        (("use_ema", "1"), ("found 1", "boolean")),
        (("init_loss_scale", "1000"), ("found 1000", "power of two", "give 1024")),
        (("loss_scaler_type", "none"), ("'none'", "known: dynamic, static")),
        (("drop_overflow_update", "False"), ("found False", "no weights to go on with")),
    ],
)
def test_what_there_is_not_is_told_in_one_line(flag: Flag, fragments: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        translated(tmp_path, flag)
    message = str(caught.value)
    assert "\n" not in message
    for fragment in (flag[0], *fragments):
        assert fragment in message


def test_lora_of_nothing_and_small_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lora_ft_unet and lora_ft_text_encoder are false"):
        translated(tmp_path, ("use_lora", "True"), ("lora_ft_unet", "False"))
    with pytest.raises(ConfigError, match="image_filter_size: 3 of 833 images have a side below 256"):
        translated(tmp_path, setting=Setting(833, 3, 8))


def test_every_image_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the recipe is made; `open_data`, which each rank calls afterwards, finds the index."""
    write_tiny(tmp_path / "sd.ckpt", "mindone")
    write_images(tmp_path / "images", 5)
    decoded = []
    monkeypatch.setattr(scan, "decode_sized", lambda content, **_: (decoded.append(content), (16, 16)))
    given = {"pretrained_model_path": tmp_path / "sd.ckpt", "data_path": tmp_path / "images", "image_size": 16}
    given |= {"model_config": "v2-vpred-train.yaml", "train_batch_size": 3, "image_filter_size": 16, "warmup_steps": 1}
    config = from_mindone(read_mindone(None, [(key, str(value)) for key, value in given.items()]), None, [], 1)
    assert config.global_batch == 3
    open_data(config)
    assert sorted(decoded) == sorted(path.read_bytes() for path in (tmp_path / "images").glob("*.png"))


def test_an_unknown_key_gets_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"train.yaml: train_batchsize: .* did you mean 'train_batch_size'"):
        translated(tmp_path, text="train_batchsize: 3\n")


def test_keys_without_effect_are_told_and_no_others(tmp_path: Path) -> None:
    (tmp_path / "train.yaml").write_text(VANILLA)
    recipe = read_mindone(tmp_path / "train.yaml", [("jit_level", "O2")])
    assert [note.split()[0] for note in notes(recipe)] == ["mode", "jit_level", "use_parallel", "num_workers"]
    assert read_mindone(None, [("epochs", "7")]).epochs == 7
