"""LoRA files of MindONE, of diffusers and of our own, told by their content."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contract.config import ConfigError
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.model_config import ModelConfig
from vpred_train.weights.containers import open_contents
from vpred_train.weights.layouts import Which, weights_of
from vpred_train.weights.lora import (
    Factors,
    Target,
    attention_targets,
    joined,
    linear_targets,
    merged,
    packed,
    separated,
)
from vpred_train.weights.lora_names import Role, known_names, written_names
from vpred_train.weights.mindspore_ckpt import write_mindspore
from vpred_train.weights.recognition import LAYOUTS, LORA_NAME
from vpred_train.weights.records import RECORD_KEY, parsed_record
from vpred_train.weights.safetensors_file import write_safetensors
from vpred_train.weights.shapes import COMPONENTS
from vpred_train.weights.sources import Source, open_source
from vpred_train.weights.stored import Float32, LazyTensors, StoredTensor

FOLDER_FILE = "pytorch_lora_weights.safetensors"  # what diffusers calls it in a folder
METADATA_KEY = "lora_adapter_metadata"  # where diffusers since 0.34 tells peft's settings
RANK = "lora_rank"  # MindONE's scalar beside the factors
UNSUPPORTED = ("use_dora", "use_rslora", "alpha_pattern", "lora_bias")
SHOWN = 10


@dataclass(frozen=True)
class LoraSource:
    """The tensors of a LoRA file under the names that it has for them."""

    path: Path
    container: str
    tensors: dict[str, StoredTensor]
    settings: dict[str, Any]
    record: ParameterizationRecord | None

    @property
    def model(self) -> ModelConfig:
        """What the record tells, else SD2."""
        return self.record.model if self.record else ModelConfig()

    @property
    def layout(self) -> str:
        """The layout whose names these are; a UNet's are the same in MindONE's files and ours."""
        if RANK in self.tensors or any(name.startswith("cond_stage_model.transformer.") for name in self.tensors):
            return "mindone"
        ours = any(name.startswith(tuple(COMPONENTS.values())) for name in self.tensors)
        return "stability" if ours else "diffusers"


def is_lora(path: Path) -> bool:
    """Does `path` hold factors of weights rather than weights? Raises ConfigError for an unknown file."""
    if path.is_dir():
        return (path / FOLDER_FILE).is_file() and not (path / "unet").is_dir()
    return any(LORA_NAME.search(name) for name in open_contents(path).tensors)


def open_lora(path: Path) -> LoraSource:
    """The names, shapes and record in a LoRA file, or in a folder of diffusers' that holds one. Raises ConfigError."""
    file = path / FOLDER_FILE if path.is_dir() else path
    contents = open_contents(file)
    if not any(LORA_NAME.search(name) for name in contents.tensors):
        names = ", ".join(list(contents.tensors)[:3]) or "none at all"
        raise ConfigError(f"{file}: holds no LoRA weights (found {len(contents.tensors)} tensors: {names})")
    record = parsed_record(file, contents.texts[RECORD_KEY]) if RECORD_KEY in contents.texts else None
    try:
        settings = json.loads(contents.texts.get(METADATA_KEY, "{}"))
    except ValueError as error:
        raise ConfigError(f"{file}: {METADATA_KEY}: no JSON ({error}); copy it again") from None
    return LoraSource(file, contents.container, contents.tensors, settings, record)


def read_factors(source: LoraSource, model: ModelConfig | None = None) -> dict[Target, Factors]:
    """The factors for `model` (default: what the record tells, else SD2); float16 and bfloat16 widen.

    q, k and v that share `down` become the packed projection. Raises ConfigError for unknown names, missing halves,
    shapes that do not fit and settings that have no reader here, with the first ten of them.
    """
    model = model or source.model
    known, shapes = known_names(model), linear_targets(model)
    places = {name: known[name] for name in source.tensors if name in known}
    faults = [f"unknown {name}" for name in source.tensors if name not in known and name != RANK]
    faults += [f"{key} in {METADATA_KEY}" for key, value in source.settings.items() if _unsupported(key, value)]
    by_target: dict[Target, dict[Role, str]] = {}
    for name, place in places.items():
        if by_target.setdefault(place.target, {}).setdefault(place.role, name) != name:
            faults.append(f"{name} is there twice, also as {by_target[place.target][place.role]}")
    for target, names in by_target.items():
        if target.part and Target(target.weight) in by_target:
            faults.append(f"{next(iter(names.values()))} is a part of what is there whole")
            continue
        faults += _misfits(source, names, shapes[target])
    if faults:
        shown = "; ".join(faults[:SHOWN]) + (" ..." if len(faults) > SHOWN else "")
        raise ConfigError(f"{source.path}: does not fit the model ({len(faults)}): {shown}; give LoRA weights of it")
    return joined({target: _factors(source, target, names) for target, names in by_target.items()})


def write_lora(
    path: Path,
    factors: Mapping[Target, Factors],
    layout: str,
    record: ParameterizationRecord | None,
    model: ModelConfig | None = None,
) -> None:
    """Write `factors` of `model` (default: the record's, else SD2) as `layout`, whole or not at all.

    "stability" is safetensors with each alpha. The others know no alpha, and the scale goes into `up`: "mindone" is a
    MindSpore .ckpt with the rank, one for all, and "diffusers" safetensors of peft's names. Raises ConfigError.
    """
    model = model or (record.model if record else ModelConfig())
    texts = {RECORD_KEY: record.model_dump_json()} if record else {}
    try:
        if layout == "mindone":
            _write_mindone(path, packed(factors), model, texts)
        elif layout == "stability":
            _write_safetensors(path, _named(layout, factors, model), texts)
        elif layout == "diffusers":
            _write_safetensors(path, _named(layout, _plain(separated(factors)), model), texts | {"format": "pt"})
        else:
            raise ConfigError(f"{path}: unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another path") from None


def _unsupported(key: str, value: Any) -> bool:
    return bool(value) and key.rpartition(".")[2] in UNSUPPORTED


def _misfits(source: LoraSource, names: Mapping[Role, str], shape: tuple[int, int]) -> list[str]:
    """Faults of the factors of one matrix `shape` (out, in)."""
    if len(names.keys() - {"alpha"}) < 2:
        return [f"{name} without its other half" for name in names.values()]
    down, up = (source.tensors[names[role]].shape for role in ("down", "up"))
    if len(down) != 2 or len(up) != 2 or down[1] != shape[1] or up[0] != shape[0]:
        return [f"{names['down']} is {_text(down)} and its other half {_text(up)}, for a matrix {_text(shape)}"]
    rank = int(source.tensors[RANK].number()) if RANK in source.tensors else down[0]
    if not down[0] == up[1] == rank:
        return [f"{names['down']} has rank {down[0]}, its other half {up[1]}, the file {rank}"]
    return []


def _factors(source: LoraSource, target: Target, names: Mapping[Role, str]) -> Factors:
    down, up = (source.tensors[names[role]].float32() for role in ("down", "up"))
    if "alpha" in names:
        return Factors(down, up, source.tensors[names["alpha"]].number())
    network = next(network for network, prefix in COMPONENTS.items() if target.weight.startswith(prefix))
    return Factors(down, up, float(source.settings.get(f"{network}.lora_alpha", len(down))))


def _plain(factors: Mapping[Target, Factors]) -> dict[Target, Factors]:
    """With scale 1 and one rank, which readers without alpha and rank of each matrix need."""
    rank = max(each.rank for each in factors.values())
    return {target: each.plain(rank) for target, each in factors.items()}


def _named(layout: str, factors: Mapping[Target, Factors], model: ModelConfig) -> dict[str, Float32]:
    """The tensors of a file."""
    tensors: dict[str, Float32] = {}
    for target, each in factors.items():
        values: dict[Role, Float32] = {"down": each.down, "up": each.up, "alpha": np.array(each.alpha, np.float32)}
        tensors |= {name: values[role] for role, name in written_names(layout, target, model).items()}
    return tensors


def _write_safetensors(path: Path, tensors: Mapping[str, Float32], texts: Mapping[str, str]) -> None:
    write_safetensors(path, {name: tensor.shape for name, tensor in tensors.items()}, tensors, texts)


def _write_mindone(path: Path, factors: Mapping[Target, Factors], model: ModelConfig, texts: Mapping[str, str]) -> None:
    if path.suffix != ".ckpt":
        raise ConfigError(f"{path}: MindSpore loads only names that end with .ckpt; give such a name")
    foreign = [target.weight for target in factors if target not in attention_targets(model)]
    if foreign:
        raise ConfigError(
            f"{path}: MindONE adapts attention projections only, not {foreign[0]}; give --to stability or diffusers"
        )
    plain = _plain(factors)
    rank = np.array([next(iter(plain.values())).rank], np.float32)
    tensors = {name: tensor for name, tensor in _named("mindone", plain, model).items() if not name.endswith(".alpha")}
    write_mindspore(path, tensors | {RANK: rank}, texts)


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


def open_base(path: Path, lora: LoraSource | None) -> Source:
    """`open_source` of the weights that `lora` is for, which tells their model when they do not."""
    return open_source(path, lora.record.model if lora and lora.record else None)


def other_base(lora: LoraSource, base: Path, xxh3: str) -> str | None:
    """The fault when `base`, of digest `xxh3`, is not what `lora` was trained on; None when it is, or nobody knows."""
    told = lora.record.base_xxh3 if lora.record else None
    if told in (None, xxh3):
        return None
    return (
        f"{lora.path}: was trained on weights with xxh3 {told}, but {base} has {xxh3}; "
        "give those weights (a copy in another layout has another xxh3)"
    )


def with_lora(base: Source, which: Which, lora: LoraSource | None, strength: float) -> LazyTensors:
    """The tensors of `base` with `strength` times LoRA's change. Raises ConfigError when one does not fit."""
    if lora is None:
        return weights_of(base, which)
    model = base.record.model if base.record else lora.model
    return merged(weights_of(base, which, model), read_factors(lora, model), strength)
