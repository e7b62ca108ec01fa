"""Answers what a network predicts: from records, markers, the diffusers scheduler, and what the user declares."""

import argparse
from dataclasses import dataclass

from launcher.contract.config import ConfigError
from vpred_train.config.diffusion import DiffusionConfig, PredictionType
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import validated
from vpred_train.weights.declarations import Declaration, declaration_of
from vpred_train.weights.layouts.read_write import WeightSet, resolve_weight_set
from vpred_train.weights.layouts.record_files import PREDICTION_TYPES, RESOLUTIONS, sd2_record
from vpred_train.weights.layouts.weight_source import WeightSource
from vpred_train.weights.lora.files import LoraSource

GIVE_TYPE = "give --prediction-type v (768-v weights) or eps (base weights)"


@dataclass(frozen=True)
class Declared:
    """Holds what the user declares, on the command line or in a recipe.

    resolution: side of the training images, pixels.
    key: the option or key that declares it, for messages.
    remedy: what to do when the weights declare another type; `{found}` in it stands for that type.
    """

    prediction_type: PredictionType
    zero_terminal_snr: bool = False
    resolution: int = 768
    key: str = "--prediction-type"
    remedy: str = "leave it out"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `declared_by` reads."""
    group = parser.add_argument_group("for weights that do not declare what they predict")
    group.add_argument("--prediction-type", choices=sorted(PREDICTION_TYPES), help="quantity that the network predicts")
    group.add_argument(
        "--zero-terminal-snr", action="store_true", help="the network was trained on the rescaled schedule"
    )
    group.add_argument(
        "--resolution", type=int, default=768, help="side of the training images in pixels (default: 768)"
    )


def declared_by(arguments: argparse.Namespace) -> Declared | None:
    """Return what the options of `add_options` declare; None when they declare nothing.

    Raises ConfigError: when the options contradict each other or the resolution is below 1.
    """
    if arguments.prediction_type is None:
        if arguments.zero_terminal_snr:
            raise ConfigError("--zero-terminal-snr: it needs --prediction-type; give both or none")
        return None
    if arguments.resolution < 1:
        raise ConfigError(f"--resolution: found {arguments.resolution} (must be at least 1)")
    return Declared(arguments.prediction_type, arguments.zero_terminal_snr, arguments.resolution)


def find_record(
    source: WeightSource,
    weights: WeightSet = "auto",
    *,
    declared: Declared | None = None,
    lora: LoraSource | None = None,
    model: ModelConfig | None = None,
) -> ParameterizationRecord | None:
    """Return what the network of `source` predicts, and what else a reader must know; None when nothing declares it.

    The first of these that declares the prediction type decides:
    1. the record of `lora`, which describes the weights and LoRA together
    2. the record in the file or folder
    3. the markers `v_pred` and `ztsnr`, or the scheduler of a diffusers folder
    4. `declared`
    Each later one that contradicts an earlier one is refused. 3 and 4 complete each other.

    weights: the set whose record is requested.
    declared: what the command line or the recipe declares about the weights of `source`.
    lora: LoRA weights that are added.
    model: the model that a source without a record holds; default SD2.
    Raises ConfigError: when two of them contradict each other, or the source contradicts itself.
    """
    of_lora = None if lora is None else lora.record
    record = _of_source(source, weights, declared, of_lora.model if of_lora else model)
    if lora is None or of_lora is None:
        return record
    base_type = of_lora.base_prediction_type or of_lora.diffusion.prediction_type
    if record is not None and record.diffusion.prediction_type != base_type:
        raise ConfigError(
            f"{lora.path}: LoRA was trained on weights that predict {base_type}, but {source.path} predicts "
            f"{record.diffusion.prediction_type}; give the weights that it was trained on"
        )
    return of_lora.model_copy(update={"base_xxh3": None, "base_prediction_type": None})  # merged weights need no base


def require_record(
    source: WeightSource,
    weights: WeightSet = "auto",
    *,
    declared: Declared | None = None,
    lora: LoraSource | None = None,
    model: ModelConfig | None = None,
    remedy: str = GIVE_TYPE,
) -> ParameterizationRecord:
    """Return the record of `find_record`. Raises ConfigError: when there is none; the message ends with `remedy`."""
    record = find_record(source, weights, declared=declared, lora=lora, model=model)
    if record is None:
        raise ConfigError(f"{source.path}: nothing declares what the network predicts; {remedy}")
    return record


def _of_source(
    source: WeightSource, weights: WeightSet, declared: Declared | None, model: ModelConfig | None
) -> ParameterizationRecord | None:
    kind = resolve_weight_set(source, weights, source.model)
    record = source.record
    found = declaration_of(source, record.model if record else model or source.model)
    diffusion = record.diffusion.model_dump() if record else dict(found.diffusion)
    if record is not None:
        _require_agreement(source, record, found)
    if declared is not None:
        diffusion.setdefault("prediction_type", declared.prediction_type)
        diffusion.setdefault("zero_terminal_snr", declared.zero_terminal_snr)
        _require_declared(source, diffusion["prediction_type"], diffusion["zero_terminal_snr"], declared)
    if record is not None or "prediction_type" not in diffusion:
        return record
    where = f"{source.path}: {found.origin or (declared.key if declared else '')}"
    checked = validated(DiffusionConfig, diffusion, where, "correct it")
    resolution = found.resolution or (declared.resolution if declared else RESOLUTIONS[checked.prediction_type])
    return sd2_record(kind, resolution, checked, found.model)


def _require_agreement(source: WeightSource, record: ParameterizationRecord, found: Declaration) -> None:
    """Raise ConfigError when a marker or an edited document contradicts the record."""
    for key, value in found.diffusion.items():
        if value != (recorded := getattr(record.diffusion, key)):
            raise ConfigError(
                f"{source.path}: {found.origin}: {key} is {value!r}, but the parameterization record beside it says "
                f"{recorded!r}; correct or remove one of them"
            )
    recorded_vae, found_vae = record.model.vae, found.model.vae
    if recorded_vae and found_vae and recorded_vae.scale != found_vae.scale:
        raise ConfigError(
            f"{source.path}: the scale of its latents is {found_vae.scale}, but the parameterization record beside it "
            f"says {recorded_vae.scale}; correct or remove one of them"
        )


def _require_declared(source: WeightSource, kind: PredictionType, zero_snr: bool, declared: Declared) -> None:
    """Raise ConfigError when the user declares another type than the weights, or a zero SNR that they deny."""
    if kind == declared.prediction_type and zero_snr >= declared.zero_terminal_snr:
        return
    raise ConfigError(
        f"{source.path}: the weights declare {_shown(kind, zero_snr)}, but {declared.key} declares "
        f"{_shown(declared.prediction_type, declared.zero_terminal_snr)}; {declared.remedy.format(found=kind)}"
    )


def _shown(kind: PredictionType, zero_snr: bool) -> str:
    return f"{kind}-prediction with zero terminal SNR" if zero_snr else f"{kind}-prediction"
