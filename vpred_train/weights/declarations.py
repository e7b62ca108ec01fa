"""Reads what weights without our record declare: by marker tensors, or in the JSON of a diffusers folder.

Markers: ComfyUI and SimpleTuner put empty tensors `v_pred` and `ztsnr` beside the weights; ldm keeps the number
`scale_factor`.
Keys of the JSON: UNet2DConditionModel, AutoencoderKL and DDIMScheduler of diffusers, CLIPTextConfig of transformers.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import ConfigDict, Field

from launcher.contract.config import ConfigError
from launcher.contract.config_errors import shown
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig, VaeConfig
from vpred_train.diffusion.schedule import alphas_cumprod
from vpred_train.foreign import Foreign, printable, read_document, validated
from vpred_train.weights.layouts.diffusers_folder import text_encoder_document, unet_document, vae_document
from vpred_train.weights.layouts.record_files import PREDICTION_TYPES
from vpred_train.weights.layouts.weight_source import WeightSource

V_PRED, ZTSNR, SCALE_FACTOR = "v_pred", "ztsnr", "scale_factor"
AGAIN = "correct it or download the folder again"
NOT_SD2 = "these are not SD 2.x weights"
# These keys change what the network computes but not the shape of any tensor. SD2 has these values.
NEUTRAL_UNET = {
    "center_input_sample": False, "downsample_padding": 1, "mid_block_scale_factor": 1, "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default", "timestep_post_act": None,
}  # fmt: skip
NEUTRAL_VAE = {"shift_factor": None, "latents_mean": None, "latents_std": None}
FREE = {"_class_name", "_diffusers_version", "sample_size", "scaling_factor", "use_linear_projection", "architectures",
        "bos_token_id", "eos_token_id", "pad_token_id", "model_type", "torch_dtype"}  # fmt: skip
SAME_BETAS = 1e-4  # largest relative difference; published lists are rounded to float32


@dataclass(frozen=True)
class Declaration:
    """Holds what a source declares about itself.

    model: the expected model, with the declared scale of the latents.
    diffusion: the declared keys of a DiffusionConfig.
    resolution: side of the training images, pixels.
    origin: name of the markers or of the file that declare `diffusion`.
    """

    model: ModelConfig
    diffusion: dict[str, Any]
    resolution: int | None
    origin: str


Document = TypeVar("Document", bound=Foreign)


class Network(Foreign):
    """Reads a config.json. Keys that are compared with SD2's keep their raw values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]


class Unet(Network):
    """Reads unet/config.json.

    sample_size: side of the latent, or its height and width, latent pixels.
    """

    sample_size: Annotated[int, Field(gt=0)] | Annotated[list[int], Field(min_length=1, max_length=2)] | None = None


class Vae(Network):
    """Reads vae/config.json.

    scaling_factor: the factor by which latents are multiplied.
    """

    scaling_factor: Annotated[float, Field(gt=0)] | None = None


class Scheduler(Foreign):
    """Reads the scheduler's JSON: the schedule that the weights were trained on."""

    class_name: str | None = Field(None, alias="_class_name")
    prediction_type: str | None = None
    beta_schedule: str | None = None
    beta_start: float | None = None
    beta_end: float | None = None
    num_train_timesteps: Annotated[int, Field(gt=0, le=1_000_000)] = 1000
    rescale_betas_zero_snr: bool | None = None
    trained_betas: list[float] | None = None


def declaration_of(source: WeightSource, model: ModelConfig) -> Declaration:
    """Return what `source` declares about itself, assuming that it holds `model`.

    Raises ConfigError: when the declaration is not SD2.
    """
    if source.layout == "diffusers" and source.path.is_dir():
        return _of_folder(source.path, model)
    declared: dict[str, Any] = {"prediction_type": "v"} if V_PRED in source.tensors else {}
    if ZTSNR in source.tensors:
        declared["zero_terminal_snr"] = True
    if SCALE_FACTOR in source.tensors:
        model = _scaled(model, source.tensors[SCALE_FACTOR].number(), f"{source.path}: {SCALE_FACTOR}")
    return Declaration(model, declared, None, " and ".join(mark for mark in (V_PRED, ZTSNR) if mark in source.tensors))


def _of_folder(folder: Path, model: ModelConfig) -> Declaration:
    paths = [folder / network / "config.json" for network in ("unet", "vae", "text_encoder")]
    unet, vae, text_encoder = _read(Unet, paths[0]), _read(Vae, paths[1]), _read(Network, paths[2])
    vae_config = model.vae or VaeConfig()
    _require(paths[0], unet, unet_document(model.unet, 0) | NEUTRAL_UNET)
    _require(paths[1], vae, vae_document(vae_config, 0) | NEUTRAL_VAE)
    _require(paths[2], text_encoder, text_encoder_document(model.text_encoder))
    if vae.scaling_factor is not None:
        model = _scaled(model, vae.scaling_factor, str(paths[1]))
    sides = unet.sample_size if isinstance(unet.sample_size, list) else [unet.sample_size or 0]
    scheduler = folder / "scheduler" / "scheduler_config.json"
    declared = _diffusion(scheduler, _read(Scheduler, scheduler))
    return Declaration(model, declared, max(sides) * vae_config.downsampling or None, scheduler.name)


def _read(model: type[Document], path: Path) -> Document:
    """Return the document, or an empty one when the file does not exist."""
    return read_document(model, path, AGAIN) or model.model_validate({})


def _require(path: Path, found: Network, expected: dict[str, Any]) -> None:
    """Raise ConfigError for a key that differs from the model's. An absent key counts as equal."""
    for key, value in expected.items():
        own = (found.__pydantic_extra__ or {}).get(key)
        if key in FREE or own is None or own == value:
            continue
        if isinstance(value, list) and own == value[0] and len(set(value)) == 1:
            continue  # one number applies to all levels
        raise ConfigError(
            f"{path}: {key}: found {printable(shown(own))} (the model has {shown(value)}); {NOT_SD2}, or set model to "
            "this value"
        )


def _diffusion(path: Path, found: Scheduler) -> dict[str, Any]:
    """Return the declared keys of a DiffusionConfig; none without a prediction type."""
    types: dict[str, PredictionType] = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    if "FlowMatch" in (found.class_name or ""):
        raise ConfigError(f"{path}: _class_name: found {found.class_name!r} (flow matching); {NOT_SD2}")
    if found.prediction_type is None:
        return {}
    for key, value, known in (
        ("prediction_type", found.prediction_type, set(types)),
        ("beta_schedule", found.beta_schedule, {"scaled_linear"}),
    ):
        if value not in known:
            raise ConfigError(
                f"{path}: {key}: found {printable(repr(value))} (known: {', '.join(sorted(known))}); {NOT_SD2}"
            )
    declared: dict[str, Any] = {
        "timesteps": found.num_train_timesteps,
        "beta_start": found.beta_start,
        "beta_end": found.beta_end,
        "zero_terminal_snr": bool(found.rescale_betas_zero_snr),
        "prediction_type": types[found.prediction_type],
    }
    if found.trained_betas is not None:
        declared["zero_terminal_snr"] |= _are_rescaled(
            path, validated(DiffusionConfig, declared, str(path), AGAIN), found.trained_betas
        )
    return declared


def _are_rescaled(path: Path, diffusion: DiffusionConfig, betas: list[float]) -> bool:
    """Return whether `betas` belong to the schedule with zero terminal SNR.

    Raises ConfigError: when they belong neither to that schedule nor to the plain one.
    """
    for rescaled in (False, True):
        plain = diffusion.model_copy(update={"zero_terminal_snr": rescaled})
        cumulative = np.concatenate(([1.0], alphas_cumprod(plain)))
        if len(betas) == diffusion.timesteps and np.allclose(
            1 - cumulative[1:] / cumulative[:-1], betas, rtol=SAME_BETAS, atol=1e-7
        ):
            return rescaled
    raise ConfigError(
        f"{path}: trained_betas: found {len(betas)} that are not the {diffusion.timesteps} of beta_start and beta_end; "
        "other schedules are not supported: give weights that were trained on SD2's"
    )


def _scaled(model: ModelConfig, scale: float, where: str) -> ModelConfig:
    """Return the model with `scale` as the scale of its latents."""
    if model.vae is None:
        return model
    if scale <= 0:
        raise ConfigError(f"{where}: found {scale} (the latents' scale must be above 0); copy the file again")
    if np.isclose(scale, model.vae.scale, rtol=1e-6):
        return model  # the difference is the rounding to float32
    return model.model_copy(update={"vae": model.vae.model_copy(update={"scale": scale})})
