"""Reads the parameterization record of weights, or makes one from what they declare in other words."""

from pathlib import Path
from typing import Literal

from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import parsed

RECORD_KEY = "parameterization"
RECORD_FILE = f"{RECORD_KEY}.json"
PREDICTION_TYPES: dict[PredictionType, str] = {
    "v": "v_prediction",
    "eps": "epsilon",
    "x0": "sample",
}  # ours -> diffusers'
RESOLUTIONS: dict[PredictionType, int] = {"v": 768, "eps": 512, "x0": 512}  # published SD2 weights, pixels


def parsed_record(path: Path, text: str) -> ParameterizationRecord:
    """Parse the record from the JSON `text` found in `path`.

    Raises ConfigError: when it is invalid; the message names the first fault.
    """
    return parsed(
        ParameterizationRecord, text, f"{path}: parameterization record", "was it written by a newer version?"
    )


def sd2_record(
    weights: Literal["raw", "ema"], resolution: int, diffusion: DiffusionConfig, model: ModelConfig
) -> ParameterizationRecord:
    """Make a record of published weights without further training.

    resolution: side of the training images, pixels.
    """
    return ParameterizationRecord(
        weights=weights, samples_seen=0, resolution=resolution, diffusion=diffusion, model=model
    )
