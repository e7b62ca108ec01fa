"""Translates MindONE's recipes for train_text_to_image. One table says what each key becomes here, or why it does not.

Some differences remain for every recipe. Norms and biases do not decay, and there is no dropout. Captions are padded as
SD2 was trained (model.text_encoder.padding). Noise and timesteps differ between ranks. Networks compute in the
accelerator's dtype (precision.compute_dtype), where MindONE's use float16.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.contract.config import ConfigError
from vpred_train.prepare.mindone_keys import MindoneRecipe

ADAM_EPSILON = 1e-6  # hard-coded in MindONE, as are the next three
EMA_DECAY = 0.9999
MOMENTUM = 0.9
GUIDANCE_SCALE = 9.0
MODEL_CONFIGS = {"v2-vpred-train.yaml": "v", "v2-train.yaml": "eps"}
SCHEDULES = {"constant": "constant", "cosine_decay": "cosine"}


@dataclass(frozen=True)
class Setting:
    """Holds what a recipe does not declare.

    samples: samples of the data set
    small: samples with a side below `smallest_side`
    world_size: number of ranks
    """

    samples: int
    small: int
    world_size: int


Settings = dict[str, Any]  # section.key -> value


@dataclass(frozen=True)
class Becomes:
    """The key is honoured.

    keys: the keys of our document that it becomes, as shown in the help
    settings: makes the values of these keys
    """

    keys: str
    settings: Callable[[MindoneRecipe, Setting], Settings]

    def __str__(self) -> str:
        return self.keys


@dataclass(frozen=True)
class Within:
    """The key is honoured, because another key or the command reads it."""

    reader: str

    def __str__(self) -> str:
        return f"honoured by {self.reader}"


@dataclass(frozen=True)
class WithoutEffect:
    """The key has no effect here."""

    reason: str

    def __str__(self) -> str:
        return f"no effect: {self.reason}"


@dataclass(frozen=True)
class Refused:
    """Values outside `allowed` are refused: they would train something else than was requested."""

    allowed: tuple[Any, ...]
    reason: str

    def __str__(self) -> str:
        return f"only {' or '.join(map(repr, self.allowed))}: {self.reason}"


def samples_per_step(recipe: MindoneRecipe, setting: Setting) -> int:
    """Return the global batch. MindONE's `train_batch_size` is per card."""
    return recipe.train_batch_size * setting.world_size


def steps_per_epoch(recipe: MindoneRecipe, setting: Setting) -> int:
    """Count the full global batches of an epoch, as MindONE does. Raises ConfigError: when there is none."""
    batch = samples_per_step(recipe, setting)
    if setting.samples < batch:
        raise ConfigError(
            f"train_batch_size: found {recipe.train_batch_size} for {setting.world_size} ranks, more than the "
            f"{setting.samples} samples of data_path; give a smaller one"
        )
    return setting.samples // batch


def unit_samples(recipe: MindoneRecipe, setting: Setting) -> int:
    """Return the samples of one unit, an epoch or a step, in which `ckpt_save_interval` and file names count."""
    steps = 1 if recipe.step_mode else steps_per_epoch(recipe, setting)
    return steps * samples_per_step(recipe, setting)


def total(recipe: MindoneRecipe, setting: Setting) -> Settings:
    """Return the samples of all steps, as many steps as MindONE makes.

    MindONE drops the rest of an epoch. Here the next batch begins with it.
    """
    return {"total_samples": recipe.epochs * steps_per_epoch(recipe, setting) * samples_per_step(recipe, setting)}


def checkpoints(recipe: MindoneRecipe, setting: Setting) -> Settings:
    unit = unit_samples(recipe, setting)
    return {"checkpoint.every_samples": recipe.ckpt_save_interval * unit, "checkpoint.mindone_unit_samples": unit}


def model(recipe: MindoneRecipe, _: Setting) -> Settings:
    """Recognize MindONE's model file by its name. It decides only what the network predicts."""
    name = Path(recipe.model_file).name
    if name not in MODEL_CONFIGS:
        raise ConfigError(
            f"model_config: found {recipe.model_file!r} (known: {', '.join(MODEL_CONFIGS)}); give one of these, or put "
            "the model into a recipe of ours"
        )
    return {"diffusion.prediction_type": MODEL_CONFIGS[name]}


def pretrained(recipe: MindoneRecipe, _: Setting) -> Settings:
    if not recipe.pretrained_model_path:
        raise ConfigError("pretrained_model_path: found nothing; give the weights to start from")
    taken = ["text_encoder", "vae"] if recipe.unet_initialize_random else ["unet", "text_encoder", "vae"]
    return {"pretrained.path": str(Path(recipe.pretrained_model_path).resolve()), "pretrained.networks": taken}


def lora(recipe: MindoneRecipe, _: Setting) -> Settings:
    if not recipe.use_lora:
        return {}
    tuned = {"unet": recipe.lora_ft_unet, "text_encoder": recipe.lora_ft_text_encoder}
    trainable = [network for network, learns in tuned.items() if learns]
    if not trainable:
        raise ConfigError("use_lora: found true, but lora_ft_unet and lora_ft_text_encoder are false; set one of them")
    return {"trainable": trainable, "lora.rank": recipe.lora_rank, "lora.alpha": recipe.lora_scale * recipe.lora_rank}


def optimizer(recipe: MindoneRecipe, _: Setting) -> Settings:
    if recipe.optim == "adam":
        raise ConfigError("optim: found 'adam', whose decay goes through the moments; give adamw, or sgd")
    if recipe.optim == "adamw":
        adam = {"name": "adam_weight_decay", "epsilon": ADAM_EPSILON, "betas": list(recipe.betas)}
        return {f"optimizer.{key}": value for key, value in adam.items()}
    return {"optimizer.name": "sgd", "optimizer.momentum": MOMENTUM}


def schedule(recipe: MindoneRecipe, setting: Setting) -> Settings:
    if recipe.scheduler not in SCHEDULES:
        raise ConfigError(
            f"scheduler: found {recipe.scheduler!r}, but MindONE's recipe does not declare its power or milestones "
            f"(known: {', '.join(SCHEDULES)}); put the schedule into a recipe of ours"
        )
    found: Settings = {"schedule.name": SCHEDULES[recipe.scheduler]}
    if recipe.scheduler == "constant":
        return found
    rest = recipe.epochs * steps_per_epoch(recipe, setting) - recipe.warmup_steps
    if recipe.decay_steps not in (0, rest):
        raise ConfigError(
            f"decay_steps: found {recipe.decay_steps}, but the rate falls to the end, {rest} steps; give 0 or {rest}"
        )
    return found | {"schedule.final_learning_rate": recipe.end_learning_rate}


def warmup(recipe: MindoneRecipe, setting: Setting) -> Settings:
    steps = recipe.epochs * steps_per_epoch(recipe, setting)
    if recipe.warmup_steps >= steps:
        raise ConfigError(
            f"warmup_steps: found {recipe.warmup_steps}, but the run has only {steps} steps and would never reach "
            "start_learning_rate; give fewer"
        )
    return {"schedule.warmup_steps": recipe.warmup_steps}


def loss_scale(recipe: MindoneRecipe, _: Setting) -> Settings:
    found: Settings = {"loss_scaling": recipe.loss_scaler_type, "init_loss_scale": recipe.init_loss_scale}
    if recipe.loss_scaler_type == "dynamic":
        found |= {"loss_scale_factor": recipe.loss_scale_factor, "loss_scale_window_steps": recipe.scale_window}
    return {f"precision.{key}": value for key, value in found.items()}


def all_images(recipe: MindoneRecipe, setting: Setting) -> Settings:
    """Raise ConfigError when MindONE would drop images: every row is trained on here, so the user must remove them."""
    if setting.small:
        raise ConfigError(
            f"image_filter_size: {setting.small} of {setting.samples} images have a side below "
            f"{recipe.image_filter_size} pixels, but no image is dropped silently here; remove them from the table, or "
            "set filter_small_size: False"
        )
    return {}


NO_MODELARTS = WithoutEffect("only enable_modelarts needs it")
TABLE: dict[str, Becomes | Within | WithoutEffect | Refused] = {
    "mode": WithoutEffect("the networks always run in graph mode"),
    "jit_level": WithoutEffect("the accelerator decides how graphs are compiled, unless there is --operation"),
    "use_parallel": WithoutEffect("the ranks of an mpirun always share the batch"),
    "replace_small_images": WithoutEffect("no image is dropped, so none is replaced"),
    "enable_modelarts": Refused((False,), "the data must be in a folder that every host sees"),
    "num_workers": NO_MODELARTS,
    "json_data_path": NO_MODELARTS,
    "data_path": Becomes("data.path", lambda r, _: {"data.path": str(Path(r.data_path).resolve())}),
    "output_path": Within("the run directory, unless there is --run-dir"),
    "resume": Refused((False, True), "the same command resumes a stopped run, and no other file is read"),
    "profile": Refused((False,), "give the number of steps to record as --profile N"),
    "model_config": Becomes("diffusion.prediction_type", model),
    "custom_text_encoder": Refused(("",), "the text encoder is SD2's"),
    "pretrained_model_path": Becomes("pretrained", pretrained),
    "use_lora": Becomes("lora and trainable", lora),
    "lora_ft_unet": Within("use_lora"),
    "lora_ft_text_encoder": Within("use_lora"),
    "lora_rank": Within("use_lora"),
    "lora_fp16": WithoutEffect("the factors are float32, and products run in precision.compute_dtype"),
    "lora_scale": Within("use_lora"),
    "unet_initialize_random": Within("pretrained_model_path"),
    "dataset_sink_mode": WithoutEffect("batches are prefetched by a thread"),
    "optim": Becomes("optimizer.name", optimizer),
    "betas": Within("optim"),
    "weight_decay": Becomes("optimizer.weight_decay", lambda r, _: {"optimizer.weight_decay": r.weight_decay}),
    "seed": Becomes("seed", lambda r, _: {"seed": r.seed}),
    "warmup_steps": Becomes("schedule.warmup_steps", warmup),
    "train_batch_size": Becomes("global_batch", lambda r, s: {"global_batch": samples_per_step(r, s)}),
    "callback_size": Becomes("log_every_steps", lambda r, _: {"log_every_steps": r.callback_size}),
    "start_learning_rate": Becomes(
        "optimizer.learning_rate", lambda r, _: {"optimizer.learning_rate": r.start_learning_rate}
    ),
    "end_learning_rate": Within("scheduler"),
    "decay_steps": Within("scheduler"),
    "scheduler": Becomes("schedule", schedule),
    "epochs": Becomes("total_samples", total),
    "init_loss_scale": Within("loss_scaler_type"),
    "loss_scale_factor": Within("loss_scaler_type"),
    "scale_window": Within("loss_scaler_type"),
    "loss_scaler_type": Becomes("precision.loss_scaling", loss_scale),
    "drop_overflow_update": Refused((True,), "an update that is not finite would destroy the weights"),
    "gradient_accumulation_steps": Refused((1,), "gradients are not accumulated; give more ranks or recompute=true"),
    "use_ema": Becomes("ema.decay", lambda r, _: {"ema.decay": EMA_DECAY if r.use_ema else 0.0}),
    "clip_grad": Becomes(
        "optimizer.max_grad_norm",
        lambda r, _: {"optimizer.max_grad_norm": r.max_grad_norm if r.clip_grad else float("inf")},
    ),
    "max_grad_norm": Within("clip_grad"),
    "enable_flash_attention": WithoutEffect(
        "the accelerator decides how attention is computed, unless there is --operation"
    ),
    "ckpt_save_interval": Becomes("checkpoint", checkpoints),
    "step_mode": Within("ckpt_save_interval"),
    "random_crop": Becomes(
        "data.crop", lambda r, _: {"data.crop": "random", "data.horizontal_flip": True} if r.random_crop else {}
    ),
    "filter_small_size": Becomes("a check of data.path", all_images),
    "image_filter_size": Within("filter_small_size"),
    "image_size": Becomes("data.resolution", lambda r, _: {"data.resolution": r.image_size}),
    "log_level": WithoutEffect("the level is fixed"),
}
# Settings that MindONE's training fixes without a key.
ALWAYS: Settings = {
    "data.caption_drop": 0.0,
    "ema.profiles": ["mindone"],
    "sampling.guidance_scale": GUIDANCE_SCALE,
    "sampling.batch_size": 1,
}


def notes(recipe: MindoneRecipe) -> list[str]:
    """Return one line for each given key that has no effect."""
    rules = {key: TABLE[key] for key in given(recipe)}
    return [f"{key} has no effect: {rule.reason}" for key, rule in rules.items() if isinstance(rule, WithoutEffect)]


def given(recipe: MindoneRecipe) -> list[str]:
    """Return the keys that the recipe declares, in the order of the table."""
    fields = MindoneRecipe.model_fields
    told = {fields[name].alias or name for name in recipe.model_fields_set}
    return [key for key in TABLE if key in told]


def translate(recipe: MindoneRecipe, setting: Setting) -> dict[str, Any]:
    """Return the same training as the raw document of a `TrainConfig`. Raises ConfigError: for unsupported values."""
    values = recipe.model_dump(by_alias=True)
    settings = dict(ALWAYS)
    for key, rule in TABLE.items():
        if isinstance(rule, Refused) and values[key] not in rule.allowed:
            raise ConfigError(f"{key}: found {values[key]!r}, but {rule.reason}; leave it out")
        if isinstance(rule, Becomes):
            settings |= rule.settings(recipe, setting)
    return nested(settings)


def nested(settings: Settings) -> dict[str, Any]:
    """Turn section.key -> value into a mapping of sections."""
    document: dict[str, Any] = {}
    for dotted, value in settings.items():
        *sections, key = dotted.split(".")
        target = document
        for section in sections:
            target = target.setdefault(section, {})
        target[key] = value
    return document
