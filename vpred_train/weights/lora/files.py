"""Reads and writes LoRA files of MindONE, of diffusers and of our own; the content decides which one it is."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import RootModel

from launcher.contract.config import ConfigError
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import Foreign, parsed, printable, read_document, validated
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore
from vpred_train.weights.formats.safetensors_file import write_safetensors
from vpred_train.weights.formats.stored_tensor import (
    Contents,
    Float32,
    LazyTensors,
    StoredTensor,
    count_text,
    is_finite,
)
from vpred_train.weights.layouts.detection import LAYOUTS, LORA_NAME
from vpred_train.weights.layouts.read_write import WeightSet, weights_of
from vpred_train.weights.layouts.record_files import RECORD_KEY, parsed_record
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS
from vpred_train.weights.layouts.weight_source import WeightSource, open_weights
from vpred_train.weights.lora.factors import (
    Factors,
    Target,
    attention_targets,
    joined,
    linear_targets,
    merged,
    packed,
    separated,
)
from vpred_train.weights.lora.names import PEFT_PREFIX, Role, known_names, plain_name, written_names

FOLDER_FILES = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers' and peft's in a folder
METADATA_KEY = "lora_adapter_metadata"  # diffusers since 0.34 stores peft's settings here
PEFT_CONFIG = "adapter_config.json"  # peft itself stores them here, beside its file
RANK = "lora_rank"  # MindONE's scalar beside the factors
FACTORS: tuple[Role, Role] = ("down", "up")
AGAIN = "copy it again"
SHOWN = 10


class Adapter(Foreign):
    """Reads peft's settings of one network that change what its factors mean (LoraConfig of peft)."""

    lora_alpha: float | None = None
    use_dora: bool | None = None
    use_rslora: bool | None = None
    lora_bias: bool | None = None
    fan_in_fan_out: bool | None = None
    alpha_pattern: dict[str, float] | None = None

    @property
    def unsupported(self) -> list[str]:
        """Return the keys that have no reader here."""
        return [key for key, value in self if value and key != "lora_alpha"]


class FlatSettings(RootModel[dict[str, Any] | None]):
    """Reads settings as network.key -> value."""


@dataclass(frozen=True)
class LoraSource:
    """Holds an open LoRA file.

    tensors: under the names that the file has for them.
    settings: network -> peft's settings.
    """

    path: Path
    container: str
    tensors: dict[str, StoredTensor]
    settings: dict[str, Adapter]
    record: ParameterizationRecord | None

    @property
    def model(self) -> ModelConfig:
        """Return the model that the record declares, else SD2."""
        return self.record.model if self.record else ModelConfig()

    @property
    def of_peft(self) -> bool:
        """Return whether peft itself wrote the file; its settings are in a document beside it then."""
        return _is_of_peft(self.tensors)

    @property
    def layout(self) -> str:
        """Return the layout that the names belong to; a UNet's names are the same in MindONE's files and ours."""
        if RANK in self.tensors or any(name.startswith("cond_stage_model.transformer.") for name in self.tensors):
            return "mindone"
        ours = any(name.startswith(tuple(COMPONENTS.values())) for name in self.tensors)
        return "stability" if ours else "diffusers"


def is_lora(path: Path) -> bool:
    """Return whether `path` holds low-rank factors rather than weights.

    Raises ConfigError: when the format is unknown.
    """
    if path.is_dir():
        return _file_in(path).is_file() and not (path / "unet").is_dir()
    return any(LORA_NAME.search(name) for name in open_contents(path).tensors)


def open_lora(path: Path) -> LoraSource:
    """Open a LoRA file, or a folder of diffusers or peft that holds one, and read its names, shapes and record.

    Raises ConfigError: when the file cannot be read or holds no LoRA weights.
    """
    file = _file_in(path) if path.is_dir() else path
    contents = open_contents(file)
    if not any(LORA_NAME.search(name) for name in contents.tensors):
        names = printable(", ".join(list(contents.tensors)[:3])) or "none"
        raise ConfigError(f"{file}: holds no LoRA weights (found {len(contents.tensors)} tensors: {names})")
    record = parsed_record(file, contents.texts[RECORD_KEY]) if RECORD_KEY in contents.texts else None
    return LoraSource(file, contents.container, contents.tensors, _settings(file, contents), record)


def _file_in(folder: Path) -> Path:
    """Return the LoRA file in a folder of diffusers or peft; when there is none, a path that does not exist."""
    return next((folder / name for name in FOLDER_FILES if (folder / name).is_file()), folder / FOLDER_FILES[0])


def _is_of_peft(names: Iterable[str]) -> bool:
    return any(PEFT_PREFIX.match(name) for name in names)


def _settings(file: Path, contents: Contents) -> dict[str, Adapter]:
    """Map each network to the settings of its factors, from the file or from peft's document beside it."""
    if _is_of_peft(contents.tensors):
        whole = read_document(Adapter, file.with_name(PEFT_CONFIG), AGAIN)
        return dict.fromkeys(("unet", "text_encoder"), whole) if whole else {}
    where = f"{file}: {METADATA_KEY}"
    flat = parsed(FlatSettings, contents.texts.get(METADATA_KEY, "{}"), where, AGAIN).root or {}
    networks: dict[str, dict[str, Any]] = {}
    for key, value in flat.items():
        network, _, name = key.partition(".")
        networks.setdefault(network, {})[name] = value
    return {network: validated(Adapter, found, f"{where}: {network}", AGAIN) for network, found in networks.items()}


def read_factors(source: LoraSource, model: ModelConfig | None = None) -> dict[Target, Factors]:
    """Return the factors for `model`; float16 and bfloat16 are widened to float32.

    q, k and v that share `down` become the packed projection.
    model: the adapted model; default: the model that the record declares, else SD2.
    Raises ConfigError: when a name is unknown or occurs twice, a half is missing, a shape does not fit, a setting has
    no reader here, or a factor holds NaN or inf. The message names the first ten faults, or one factor with NaN or inf.
    """
    model = model or source.model
    known, shapes = known_names(model), linear_targets(model)
    found = {name: known.get(plain_name(name)) for name in source.tensors if name != RANK}
    places = {name: place for name, place in found.items() if place}
    faults = [f"unknown {name}" for name, place in found.items() if place is None]
    document = PEFT_CONFIG if source.of_peft else METADATA_KEY
    faults += [
        f"{network}.{key} in {document}" for network, each in source.settings.items() for key in each.unsupported
    ]
    by_target: dict[Target, dict[Role, str]] = {}
    for name, place in places.items():
        if by_target.setdefault(place.target, {}).setdefault(place.role, name) != name:
            faults.append(f"{name} is there twice, also as {by_target[place.target][place.role]}")
    for target, names in by_target.items():
        if target.part and Target(target.weight) in by_target:
            faults.append(f"{next(iter(names.values()))} is part of a matrix that is also there in full")
            continue
        faults += _misfits(source, names, shapes[target])
    if faults:
        shown = "; ".join(map(printable, faults[:SHOWN])) + (" ..." if len(faults) > SHOWN else "")
        raise ConfigError(
            f"{source.path}: does not fit the model ({len(faults)}): {shown}; give LoRA weights for this model"
        )
    return joined({target: _factors(source, target, names) for target, names in by_target.items()})


def write_lora(
    path: Path,
    factors: Mapping[Target, Factors],
    layout: str,
    record: ParameterizationRecord | None,
    model: ModelConfig | None = None,
) -> None:
    """Write `factors` as `layout`, completely or not at all.

    layout: "stability" is safetensors with each alpha. The other layouts have no alpha, so the scale goes into `up`.
    "mindone" is a MindSpore .ckpt with one rank for all factors. "diffusers" is safetensors with peft's names.
    model: the adapted model; default: the record's, else SD2.
    Raises ConfigError: when the layout cannot hold the factors, or the path cannot be written.
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


def _misfits(source: LoraSource, names: Mapping[Role, str], shape: tuple[int, int]) -> list[str]:
    """List the faults in the factors of one matrix of `shape` (out, in)."""
    if len(names.keys() - {"alpha"}) < 2:
        return [f"{name} without its other half" for name in names.values()]
    down, up = (_matrix(source.tensors[names[role]].shape) for role in FACTORS)
    if len(down) != 2 or len(up) != 2 or down[1] != shape[1] or up[0] != shape[0]:
        return [f"{names['down']} is {_text(down)} and its other half {_text(up)}, for a matrix {_text(shape)}"]
    if down[0] == 0:
        return [f"{names['down']} has rank 0"]
    rank = int(source.tensors[RANK].number()) if RANK in source.tensors else down[0]
    if not down[0] == up[1] == rank:
        return [f"{names['down']} has rank {down[0]}, its other half {up[1]}, the file {rank}"]
    return []


def _factors(source: LoraSource, target: Target, names: Mapping[Role, str]) -> Factors:
    halves = {names[role]: source.tensors[names[role]].float32() for role in FACTORS}
    for name, half in halves.items():
        if not is_finite(half):
            raise ConfigError(f"{source.path}: {name} holds {count_text(half)}; give LoRA weights that are finite")
    down, up = (half.reshape(half.shape[:2]) for half in halves.values())
    if "alpha" in names:
        return Factors(down, up, source.tensors[names["alpha"]].number())
    network = next(network for network, prefix in COMPONENTS.items() if target.weight.startswith(prefix))
    alpha = source.settings.get(network, Adapter()).lora_alpha
    return Factors(down, up, float(len(down) if alpha is None else alpha))


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape as a matrix when a factor was written as a 1x1 kernel."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _plain(factors: Mapping[Target, Factors]) -> dict[Target, Factors]:
    """Return the factors with scale 1 and one rank, for readers without an alpha and a rank for each matrix."""
    rank = max(each.rank for each in factors.values())
    return {target: each.plain(rank) for target, each in factors.items()}


def _named(layout: str, factors: Mapping[Target, Factors], model: ModelConfig) -> dict[str, Float32]:
    """Return the tensors of a file under the names of `layout`."""
    tensors: dict[str, Float32] = {}
    for target, each in factors.items():
        values: dict[Role, Float32] = {"down": each.down, "up": each.up, "alpha": np.array(each.alpha, np.float32)}
        tensors |= {name: values[role] for role, name in written_names(layout, target, model).items()}
    return tensors


def _write_safetensors(path: Path, tensors: Mapping[str, Float32], texts: Mapping[str, str]) -> None:
    write_safetensors(path, {name: tensor.shape for name, tensor in tensors.items()}, tensors, texts)


def _write_mindone(path: Path, factors: Mapping[Target, Factors], model: ModelConfig, texts: Mapping[str, str]) -> None:
    if path.suffix != ".ckpt":
        raise ConfigError(f"{path}: MindSpore loads only files whose name ends with .ckpt; give such a name")
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


def open_base(path: Path, lora: LoraSource | None) -> WeightSource:
    """Open the weights that `lora` adapts. LoRA's record declares their model if it has one."""
    return open_weights(path, lora.record.model if lora and lora.record else None)


def base_mismatch(lora: LoraSource, base: Path, xxh3: str) -> str | None:
    """Return the fault when `lora` was trained on other weights than `base`, whose digest is `xxh3`.

    The result is None when they are the same weights, or the record does not say.
    """
    recorded = lora.record.base_xxh3 if lora.record else None
    if recorded in (None, xxh3):
        return None
    return (
        f"{lora.path}: LoRA was trained on weights with xxh3 {recorded}, but {base} has {xxh3}; "
        "give those weights (a copy in another layout has another xxh3)"
    )


def with_lora(base: WeightSource, which: WeightSet, lora: LoraSource | None, strength: float) -> LazyTensors:
    """Return the tensors of `base` with `strength` times LoRA's change added.

    Raises ConfigError: when a tensor does not fit.
    """
    if lora is None:
        return weights_of(base, which)
    model = base.record.model if base.record else lora.model
    return merged(weights_of(base, which, model), read_factors(lora, model), strength)
