"""The parameterization record of weights: read from them, or from what diffusers' files tell instead."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from launcher.contract.config import ConfigError
from vpred_train.config import DiffusionConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.model_config import ModelConfig, VaeConfig

RECORD_KEY = "parameterization"
RECORD_FILE = f"{RECORD_KEY}.json"
PREDICTION_TYPES = {"v": "v_prediction", "eps": "epsilon", "x0": "sample"}  # ours -> diffusers'


def parsed_record(path: Path, text: str) -> ParameterizationRecord:
    """The record written as JSON `text` in `path`. Raises ConfigError naming the first fault."""
    try:
        return ParameterizationRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: parameterization record: {where}: {first['msg']}; was it written by a newer version?"
        ) from None


def record_of_folder(folder: Path, weights: Literal["raw", "ema"]) -> ParameterizationRecord | None:
    """What a foreign diffusers folder of SD2 tells in its scheduler's and UNet's configuration.

    None when they tell no prediction type. Raises ConfigError when they tell another schedule than SD2's.
    """
    scheduler, unet = (
        _document(folder / "scheduler" / "scheduler_config.json"),
        _document(folder / "unet" / "config.json"),
    )
    if "prediction_type" not in scheduler:
        return None
    types = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    for key, known in (("prediction_type", set(types)), ("beta_schedule", {"scaled_linear"})):
        if scheduler.get(key) not in known:
            raise ConfigError(
                f"{folder}: scheduler_config.json: {key}: found {scheduler.get(key)!r} (known: "
                f"{', '.join(sorted(known))}); these are not SD 2.x weights"
            )
    told: dict[str, Any] = {
        "timesteps": scheduler.get("num_train_timesteps", 1000),
        "beta_start": scheduler.get("beta_start"),
        "beta_end": scheduler.get("beta_end"),
        "zero_terminal_snr": bool(scheduler.get("rescale_betas_zero_snr")),
        "prediction_type": types[scheduler["prediction_type"]],
    }
    try:
        diffusion = DiffusionConfig.model_validate(told)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        raise ConfigError(f"{folder}: scheduler_config.json: {where}: {error.errors()[0]['msg']}; mend it") from None
    return sd2_record(weights, int(unet.get("sample_size", 96)) * VaeConfig().downsampling, diffusion)


def sd2_record(weights: Literal["raw", "ema"], resolution: int, diffusion: DiffusionConfig) -> ParameterizationRecord:
    """A record of published weights, which nobody has trained further."""
    return ParameterizationRecord(
        weights=weights, samples_seen=0, resolution=resolution, diffusion=diffusion, model=ModelConfig()
    )


def _document(path: Path) -> dict[str, Any]:
    """A JSON object; empty when there is no such file."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); download it again") from None
    return document if isinstance(document, dict) else {}
