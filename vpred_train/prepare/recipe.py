"""Resolves a recipe file with overrides, and checks it against its data and weights. Needs no MindSpore."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from data import DataConfig, open_source
from launcher.contract.config import ConfigError, build_document, load_document
from launcher.contract.config_errors import first_mistake
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import PretrainedConfig
from vpred_train.prepare.mindone_keys import COMMAND_LINE, MindoneRecipe
from vpred_train.prepare.mindone_recipe import Setting, translate
from vpred_train.weights.layouts.weight_source import open_weights
from vpred_train.weights.lora.factors import attention_targets
from vpred_train.weights.pretrained import pin_digest
from vpred_train.weights.record_lookup import Declared, require_record


def load_recipe(path: Path, overrides: Sequence[str] = (), without_weights: bool = False) -> TrainConfig:
    """Read and resolve a recipe.

    Relative paths start at the recipe's folder, and those of overrides at the current folder.
    Model keys that the recipe leaves open are taken from the pretrained weights.

    without_weights: the pretrained weights may be absent
    """
    config = load_document(TrainConfig, path, overrides)
    overridden = tuple(f"{override.split('=')[0]}." for override in overrides)

    def absolute(key: str, given: Path) -> Path:
        return ((Path.cwd() if f"{key}.".startswith(overridden) else path.resolve().parent) / given).resolve()

    return resolve_recipe(config, absolute, without_weights)


def from_mindone(recipe: MindoneRecipe, path: Path | None, overrides: Sequence[str], world_size: int) -> TrainConfig:
    """Translate and resolve MindONE's `recipe` for its data and `world_size` ranks.

    Relative paths start at the current folder.

    path: the file of the recipe, for messages; None when it was read from flags alone
    overrides: section.key=value of our document, applied last
    Raises ConfigError and DataError: for a bad recipe, weights or data.
    """
    origin = path or COMMAND_LINE
    source = open_source(Path(recipe.data_path), "skip")  # `open_data` follows the policy
    small = int((source.sizes(np.arange(len(source))).min(1) < recipe.smallest_side).sum())
    setting = Setting(len(source), small, world_size)
    try:
        raw = translate(recipe, setting)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    config = build_document(TrainConfig, raw, origin, overrides)
    return resolve_recipe(config, lambda _, given: given.resolve())


def resolve_recipe(
    config: TrainConfig, absolute: Callable[[str, Path], Path], without_weights: bool = False
) -> TrainConfig:
    """Return the recipe with absolute paths, the digest of its weights, and what they declare.

    absolute: function (key, path) -> absolute path
    Raises ConfigError: when recipe and weights contradict each other, or the weights cannot be read.
    """
    config = config.model_copy(update={"data": data_with_absolute_paths(config.data, absolute)})
    if config.validation is not None and config.validation.path is not None:
        path_given = absolute("validation.path", config.validation.path)
        config = config.model_copy(update={"validation": config.validation.model_copy(update={"path": path_given})})
    if config.pretrained is None:
        return config
    weights = absolute("pretrained.path", config.pretrained.path)
    if without_weights and not weights.exists():
        return config
    config = adopt_record(config, pin_digest(config.pretrained.model_copy(update={"path": weights})))
    check_lora(config)
    return config


def data_with_absolute_paths(data: DataConfig, absolute: Callable[[str, Path], Path]) -> DataConfig:
    """Return the section with absolute paths."""
    given = {"path": data.path, "cache": data.cache}
    found = {key: absolute(f"data.{key}", path) for key, path in given.items() if path is not None}
    sources = [each.model_copy(update={"path": absolute("data.sources", each.path)}) for each in data.sources]
    return data.model_copy(update={**found, "sources": tuple(sources)})


def adopt_record(config: TrainConfig, pretrained: PretrainedConfig) -> TrainConfig:
    """Fill the keys that the recipe leaves open with those that the record of its pretrained weights declares.

    The schedule may differ from that of the weights. The networks may not. The prediction type may differ only when
    `prediction_type_was` declares that of the weights.
    Raises ConfigError: when recipe and record contradict each other, or neither declares what the network predicts.
    """
    source = open_weights(pretrained.path)
    record = require_record(
        source,
        pretrained.weights,
        declared=declared_in(config, pretrained),
        model=config.model,
        remedy="set diffusion.prediction_type to v (768-v weights) or eps (base weights)",
    )
    try:
        found = overlay(record.diffusion, config.diffusion)
        if pretrained.prediction_type_was is not None:
            found["prediction_type"] = config.diffusion.prediction_type
        diffusion = DiffusionConfig.model_validate(found)
        model = ModelConfig.model_validate(overlay(record.model, config.model))
        resolved = config.model_dump() | {"pretrained": pretrained, "diffusion": diffusion, "model": model}
        config = TrainConfig.model_validate(resolved)
    except ValidationError as error:
        raise ConfigError(f"{pretrained.path}: with the recipe: {first_mistake(error).reason}") from None
    if differing := differences(record.model.model_dump(), config.model.model_dump(), "model."):
        raise ConfigError(
            f"{pretrained.path}: these weights need another recipe: {'; '.join(differing)}; leave these keys out"
        )
    return config


def declared_in(config: TrainConfig, pretrained: PretrainedConfig) -> Declared | None:
    """Return what the recipe declares about its pretrained weights; None when it declares nothing.

    Only the prediction type counts: the schedule may differ from that of the weights.
    """
    resolution = config.data.resolution
    if pretrained.prediction_type_was is not None:
        return Declared(
            pretrained.prediction_type_was,
            resolution=resolution,
            key="pretrained.prediction_type_was",
            remedy="set it to {found}",
        )
    if "prediction_type" not in config.diffusion.model_fields_set:
        return None
    kind = config.diffusion.prediction_type
    return Declared(
        kind,
        resolution=resolution,
        key="diffusion.prediction_type",
        remedy=f"leave it out, or set pretrained.prediction_type_was={{found}} to train them to predict {kind}",
    )


def check_lora(config: TrainConfig) -> None:
    """Raise ConfigError when LoRA's rank is above that of a matrix that it adapts."""
    if config.lora is None:
        return
    largest = min(min(shape) for shape in attention_targets(config.model, config.trainable).values())
    if config.lora.rank > largest:
        raise ConfigError(
            f"lora.rank: found {config.lora.rank}, but an adapted matrix has only {largest}; give at most that"
        )


def overlay(recorded: Any, given: Any) -> dict[str, Any]:
    """Overlay the recorded section with the keys that the recipe sets."""

    def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
        nested = {
            key: over(below[key], value)
            for key, value in above.items()
            if isinstance(value, dict) and isinstance(below.get(key), dict)
        }
        return below | above | nested

    return over(recorded.model_dump(), given.model_dump(exclude_unset=True))


def differences(recorded: dict[str, Any], given: dict[str, Any], prefix: str) -> list[str]:
    """List the differences of two models. The padding of captions may differ."""
    found = []
    for key, value in recorded.items():
        if isinstance(value, dict) and isinstance(given[key], dict):
            found += differences(value, given[key], f"{prefix}{key}.")
        elif value != given[key] and key != "padding":
            found.append(f"{prefix}{key}: found {given[key]!r}, the weights declare {value!r}")
    return found


def check_world_size(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError when the global batch cannot be divided evenly among ranks and micro-batches."""
    micro = config.gradient_accumulation_steps
    parts = world_size * micro
    if config.global_batch % parts:
        below = config.global_batch // parts * parts
        near = " or ".join(str(size) for size in (below, below + parts) if size)
        batches = f" of {micro} micro-batches" if micro > 1 else ""
        raise ConfigError(
            f"global_batch: found {config.global_batch} for {world_size} ranks{batches} "
            f"(must be a multiple of {parts}); give {near}, or another number of ranks"
        )


def rank_counts(config: TrainConfig, most: int) -> list[int]:
    """Return the numbers of ranks up to `most` that divide the global batch evenly."""
    parts = config.gradient_accumulation_steps
    return [count for count in range(1, most + 1) if config.global_batch % (count * parts) == 0]
