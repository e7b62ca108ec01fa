"""Finds what a network predicts: from the file's record or markers, the diffusers scheduler, or the command line."""

import argparse
from dataclasses import dataclass

from launcher.contract.config import ConfigError
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import validated
from vpred_train.weights.declarations import Declaration, declaration_of
from vpred_train.weights.layouts.read_write import Which, settled
from vpred_train.weights.layouts.record_files import PREDICTION_TYPES, RESOLUTIONS, sd2_record
from vpred_train.weights.layouts.weight_source import Source
from vpred_train.weights.lora.files import LoraSource


@dataclass(frozen=True)
class Told:
    """Holds what the command line declares.

    resolution: side of the training images, pixels.
    """

    prediction_type: PredictionType
    zero_terminal_snr: bool
    resolution: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `told_by` reads."""
    group = parser.add_argument_group("for weights that do not tell it")
    group.add_argument("--prediction-type", choices=sorted(PREDICTION_TYPES), help="what the network predicts")
    group.add_argument("--zero-terminal-snr", action="store_true", help="trained on the rescaled schedule")
    group.add_argument("--resolution", type=int, default=768, help="side of the training images in pixels")


def told_by(arguments: argparse.Namespace) -> Told | None:
    """Return what the options of `add_options` declare; None when they declare nothing.

    Raises ConfigError: when the options contradict each other or the resolution is below 1.
    """
    if arguments.prediction_type is None:
        if arguments.zero_terminal_snr:
            raise ConfigError("--zero-terminal-snr: goes with --prediction-type; give both or none")
        return None
    if arguments.resolution < 1:
        raise ConfigError(f"--resolution: found {arguments.resolution} (must be at least 1)")
    return Told(arguments.prediction_type, arguments.zero_terminal_snr, arguments.resolution)


def record_for(
    source: Source, which: Which, told: Told | None, model: ModelConfig | None = None
) -> ParameterizationRecord | None:
    """Return the source's record, or one made from its markers or scheduler, or from the command line, in this order.

    The result is None when none of them declares the prediction type.
    model: the model that a source without a record holds; default SD2.
    Raises ConfigError: when the command line contradicts the source, or the source contradicts itself.
    """
    kind = settled(source, which, source.model)
    record = source.record
    found = declaration_of(source, record.model if record else model or source.model)
    if record is not None:
        _require_agreement(source, record, found)
        if told is not None:
            own = record.diffusion
            _require_same(source, own.prediction_type, own.zero_terminal_snr, told)
        return record
    diffusion = dict(found.diffusion)
    if told is not None:
        own_type = diffusion.setdefault("prediction_type", told.prediction_type)
        own_snr = diffusion.setdefault("zero_terminal_snr", told.zero_terminal_snr)
        _require_same(source, own_type, own_snr, told)
    if "prediction_type" not in diffusion:
        return None
    resolution = found.resolution or (told.resolution if told else RESOLUTIONS[diffusion["prediction_type"]])
    where = f"{source.path}: {found.teller or 'command line'}"
    return sd2_record(kind, resolution, validated(DiffusionConfig, diffusion, where, "correct it"), found.model)


def _require_agreement(source: Source, record: ParameterizationRecord, found: Declaration) -> None:
    """Raise ConfigError when a marker or an edited document contradicts the record."""
    for key, value in found.diffusion.items():
        if value != (own := getattr(record.diffusion, key)):
            raise ConfigError(
                f"{source.path}: {found.teller}: {key} is {value!r}, but the parameterization record beside it says "
                f"{own!r}; correct or remove one of them"
            )
    own_vae, found_vae = record.model.vae, found.model.vae
    if own_vae and found_vae and own_vae.scale != found_vae.scale:
        raise ConfigError(
            f"{source.path}: its latents' scale is {found_vae.scale}, but the parameterization record beside it says "
            f"{own_vae.scale}; correct or remove one of them"
        )


def _require_same(source: Source, own_type: PredictionType, own_snr: bool, told: Told) -> None:
    if own_type != told.prediction_type or told.zero_terminal_snr > own_snr:
        raise ConfigError(
            f"{source.path}: tells {own_type}-prediction{' with zero terminal SNR' * own_snr}"
            f", but --prediction-type tells {told.prediction_type}{' with it' * told.zero_terminal_snr}; leave it out"
        )


def record_with(
    source: Source, which: Which, told: Told | None, lora: LoraSource | None
) -> ParameterizationRecord | None:
    """Return the record of the source's weights merged with `lora`: LoRA's record if it has one, else the source's.

    Raises ConfigError: when LoRA was trained on weights that predict something else.
    """
    own_model = lora.record.model if lora is not None and lora.record is not None else None
    record = record_for(source, which, told, own_model)
    if lora is None or lora.record is None:
        return record
    own = lora.record.base_prediction_type or lora.record.diffusion.prediction_type
    if record is not None and record.diffusion.prediction_type != own:
        raise ConfigError(
            f"{lora.path}: was trained on weights that predict {own}, but {source.path} predicts "
            f"{record.diffusion.prediction_type}; give the weights that it was trained on"
        )
    alone = {"base_xxh3": None, "base_prediction_type": None}  # merged weights need no base
    return lora.record.model_copy(update=alone)


def needed_record(
    source: Source, which: Which, told: Told | None, lora: LoraSource | None = None
) -> ParameterizationRecord:
    """Return the record that `record_with` finds. Raises ConfigError: when there is none."""
    record = record_with(source, which, told, lora)
    if record is None:
        raise ConfigError(
            f"{source.path}: does not tell what the network predicts; give --prediction-type v "
            "(768-v weights) or eps (base weights)"
        )
    return record
