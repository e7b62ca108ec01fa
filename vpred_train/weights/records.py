"""The parameterization record of weights: read from them, or from what diffusers' files tell instead."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from launcher.contract.config import ConfigError
from vpred_train.config import DiffusionConfig, ModelConfig, VaeConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.models.weights import RECORD_KEY

RECORD_FILE = f"{RECORD_KEY}.json"
PREDICTION_TYPES = {"v": "v_prediction"}  # ours -> diffusers'


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


def prediction_type_of_folder(folder: Path) -> str:
    """What the scheduler of a diffusers folder says; empty when it says nothing."""
    return str(_document(folder / "scheduler" / "scheduler_config.json").get("prediction_type", ""))


def record_of_folder(folder: Path, weights: Literal["raw", "ema"]) -> ParameterizationRecord | None:
    """What a foreign diffusers folder of SD2 tells in its scheduler's and UNet's configuration.

    None when there is none, or when it tells another prediction type or schedule than ours.
    """
    scheduler, unet = (
        _document(folder / "scheduler" / "scheduler_config.json"),
        _document(folder / "unet" / "config.json"),
    )
    types = {theirs: ours for ours, theirs in PREDICTION_TYPES.items()}
    if scheduler.get("prediction_type") not in types or scheduler.get("beta_schedule") != "scaled_linear":
        return None
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
        weights=weights, samples_seen=0, resolution=resolution, diffusion=diffusion, model=ModelConfig.sd2()
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
