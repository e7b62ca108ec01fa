"""The parameterization of weights, from the one who tells it: the file, its scheduler, or the command line."""

import argparse
from dataclasses import dataclass

from launcher.contract.config import ConfigError
from vpred_train.config import DiffusionConfig, PredictionType
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.layouts import Which, settled
from vpred_train.weights.lora_files import LoraSource
from vpred_train.weights.records import PREDICTION_TYPES, record_of_folder, sd2_record
from vpred_train.weights.sources import Source


@dataclass(frozen=True)
class Told:
    """What the command line tells; `resolution` is the side of the training images in pixels."""

    prediction_type: PredictionType
    zero_terminal_snr: bool
    resolution: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that `told_by` reads."""
    group = parser.add_argument_group("for weights that do not tell it")
    group.add_argument("--prediction-type", choices=sorted(PREDICTION_TYPES), help="what the network predicts")
    group.add_argument("--zero-terminal-snr", action="store_true", help="trained on the rescaled schedule")
    group.add_argument("--resolution", type=int, default=768, help="side of the training images in pixels")


def told_by(arguments: argparse.Namespace) -> Told | None:
    """What `add_options`' options tell, if anything. Raises ConfigError."""
    if arguments.prediction_type is None:
        if arguments.zero_terminal_snr:
            raise ConfigError("--zero-terminal-snr: goes with --prediction-type; give both or none")
        return None
    return Told(arguments.prediction_type, arguments.zero_terminal_snr, arguments.resolution)


def record_for(source: Source, which: Which, told: Told | None) -> ParameterizationRecord | None:
    """The source's own record; else what its scheduler tells; else what the user tells; None when nobody does.

    Raises ConfigError when the user tells something else than the source.
    """
    kind = settled(source, which, source.model)
    record = source.record
    if record is None and source.layout == "diffusers":
        record = record_of_folder(source.path, kind)
    if told is None:
        return record
    if record is None:
        diffusion = DiffusionConfig(prediction_type=told.prediction_type, zero_terminal_snr=told.zero_terminal_snr)
        return sd2_record(kind, told.resolution, diffusion)
    own = record.diffusion
    if own.prediction_type != told.prediction_type or told.zero_terminal_snr > own.zero_terminal_snr:
        raise ConfigError(
            f"{source.path}: tells {own.prediction_type}-prediction{' with zero terminal SNR' * own.zero_terminal_snr}"
            f", but --prediction-type tells {told.prediction_type}{' with it' * told.zero_terminal_snr}; leave it out"
        )
    return record


def record_with(
    source: Source, which: Which, told: Told | None, lora: LoraSource | None
) -> ParameterizationRecord | None:
    """The record of the source's weights with LoRA's added: LoRA's own where it has one, else the source's.

    Raises ConfigError when LoRA was trained on weights that predict something else.
    """
    record = record_for(source, which, told)
    if lora is None or lora.record is None:
        return record
    own = lora.record.diffusion.prediction_type
    if record is not None and record.diffusion.prediction_type != own:
        raise ConfigError(
            f"{lora.path}: was trained on weights that predict {own}, but {source.path} predicts "
            f"{record.diffusion.prediction_type}; give the weights that it was trained on"
        )
    return lora.record.model_copy(update={"base_xxh3": None})  # weights that stand alone


def needed_record(
    source: Source, which: Which, told: Told | None, lora: LoraSource | None = None
) -> ParameterizationRecord:
    """`record_with`, where there must be one. Raises ConfigError."""
    record = record_with(source, which, told, lora)
    if record is None:
        raise ConfigError(
            f"{source.path}: does not tell what the network predicts; give --prediction-type v "
            "(768-v weights) or eps (base weights)"
        )
    return record
