"""Reads and writes SD2 weights in the layouts of MindONE, Stability and diffusers.

In memory, weights are one mapping from Stability's names to float32 arrays.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from vpred_train.config.model import ModelConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.foreign import printable
from vpred_train.weights.formats.mindspore_ckpt import write_mindspore
from vpred_train.weights.formats.safetensors_file import write_safetensors
from vpred_train.weights.formats.stored_tensor import (
    FLOATS,
    OTHER_TYPE,
    Float32,
    LazyTensors,
    StoredTensor,
    count_text,
    is_finite,
)
from vpred_train.weights.layouts.detection import LAYOUTS, ema_names, is_unused, layout_scores, possible_names
from vpred_train.weights.layouts.diffusers_folder import write_folder
from vpred_train.weights.layouts.record_files import RECORD_KEY
from vpred_train.weights.layouts.tensor_names import mindone_name
from vpred_train.weights.layouts.tensor_shapes import UNET, stability_shapes
from vpred_train.weights.layouts.weight_source import WeightSource, open_weights

WeightSet = Literal["ema", "raw", "auto"]
Shape = tuple[int, ...]
Place = tuple[str, tuple[StoredTensor, ...], Shape]  # (first of its names in the source, its parts there, its shape)
SHOWN = 10


def read_weights(path: Path, which: WeightSet = "auto", model: ModelConfig | None = None) -> LazyTensors:
    """Return the model's tensors under Stability's names.

    The content decides layout and container. float16 and bfloat16 are widened to float32. NaN and inf are accepted.
    which: "auto" takes the moving average (EMA) where the file has one.
    model: the expected model; default: the model of the file's record, else SD2.
    Raises ConfigError: when the file holds another model, or when tensors are missing, unexpected, or of a wrong shape
    or dtype. The message names the first ten tensors, or one with a wrong dtype.
    """
    fitting = _fitting(open_weights(path, model), which, model)
    return LazyTensors({name: partial(_assembled, parts, shape) for name, (_, parts, shape) in fitting.items()})


def weights_of(source: WeightSource, which: WeightSet = "auto", model: ModelConfig | None = None) -> LazyTensors:
    """Do the same as `read_weights` for an open source, but refuse NaN and inf.

    Raises ConfigError: when the source does not fit the model; later, when a tensor that is read holds NaN or inf.
    """
    return LazyTensors({name: partial(_finite, *place) for name, place in _fitting(source, which, model).items()})


def require_finite(tensors: LazyTensors, prefixes: tuple[str, ...] = ("",)) -> None:
    """Read all tensors of `weights_of` whose names start with one of `prefixes`, one at a time.

    Raises ConfigError: when a tensor holds NaN or inf; the message names it.
    """
    for name, make in tensors.makers.items():
        if name.startswith(prefixes):
            make()


def _fitting(source: WeightSource, which: WeightSet, model: ModelConfig | None) -> dict[str, Place]:
    """Return where each tensor of the model lies. Raises ConfigError: when the source does not fit the model."""
    model = model or source.model
    shapes = stability_shapes(model)
    chosen = _chosen_names(source, resolve_weight_set(source, which, model), model)
    parts = {name: tuple(source.tensors[part] for part in chosen[name]) for name in shapes if name in chosen}
    faults = [
        f"missing {' or '.join(possible_names(source.layout, model)[name][0])}" for name in shapes if name not in parts
    ]
    counts = {"missing": len(faults)}
    unexpected = _unexpected(source, chosen, model)
    faults += [f"unexpected {name}" for name in unexpected]
    counts["unexpected"] = len(unexpected)
    misshapen = [
        f"{chosen[name][0]} is {_text(each[0].shape)}, needed {_text(_part_shape(shapes[name], len(each)))}"
        for name, each in parts.items()
        if any(not _fits(part.shape, _part_shape(shapes[name], len(each))) for part in each)
    ]
    counts["wrongly shaped"] = len(misshapen)
    if faults or misshapen:
        raise ConfigError(_refusal(source, counts, faults + misshapen, model))
    if others := [name for name in parts if any(part.dtype not in FLOATS for part in parts[name])]:
        found = ", ".join(sorted({part.dtype for name in others for part in parts[name]} - FLOATS))
        raise ConfigError(
            f"{source.path}: {len(others)} needed tensors are {found}, such as {chosen[others[0]][0]}; {OTHER_TYPE}"
        )
    return {name: (chosen[name][0], each, shapes[name]) for name, each in parts.items()}


def available_weight_sets(source: WeightSource, model: ModelConfig) -> tuple[str, ...]:
    """Return the sets of weights in the source: "raw" and "ema", or one set, whose kind only a record declares."""
    if any(name in source.tensors for name in ema_names(source.layout, model).values()):
        return ("raw", "ema")
    return (source.record.weights,) if source.record else ("unlabelled",)


def write_weights(
    path: Path, tensors: Mapping[str, Float32], layout: str, record: ParameterizationRecord | None
) -> None:
    """Write `tensors` as `layout`, completely or not at all. The tensors are fetched one at a time.

    tensors: Stability's name -> float32, of the record's model, else of SD2.
    layout: "mindone" is a MindSpore .ckpt, "stability" a safetensors file, "diffusers" a new folder, which needs a
    record.
    Raises ConfigError: when a tensor does not fit, or the path cannot be written.
    """
    model = record.model if record else ModelConfig()
    shapes = stability_shapes(model)
    faults = [f"missing {name}" for name in shapes if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in shapes]
    if faults:
        raise ConfigError(f"{path}: {len(faults)} tensors do not fit the model: {_first(faults)}; export all tensors")
    checked = LazyTensors({name: partial(_checked, path, tensors, name, shapes[name]) for name in shapes})
    texts = {RECORD_KEY: record.model_dump_json()} if record else {}
    try:
        if layout == "mindone":
            if path.suffix != ".ckpt":
                raise ConfigError(f"{path}: MindSpore loads only files whose name ends with .ckpt; give such a name")
            write_mindspore(path, LazyTensors({mindone_name(name): checked.makers[name] for name in shapes}), texts)
        elif layout == "stability":
            write_safetensors(path, shapes, checked, texts)
        elif layout == "diffusers":
            write_folder(path, shapes, checked, record)
        else:
            raise ConfigError(f"{path}: unknown layout {layout!r}; known are {', '.join(LAYOUTS)}")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); give another path") from None


def resolve_weight_set(source: WeightSource, which: WeightSet, model: ModelConfig) -> Literal["ema", "raw"]:
    """Return the set that `which` selects; "raw" when the source does not label its only set.

    Raises ConfigError: when the source does not hold that set.
    """
    held = available_weight_sets(source, model)
    if which == "auto":
        return "ema" if "ema" in held else "raw"
    if which not in held and (held != ("unlabelled",) or which == "ema"):
        raise ConfigError(f"{source.path}: holds {' and '.join(held)} weights, not {which}; give auto")
    return which


def _chosen_names(source: WeightSource, which: WeightSet, model: ModelConfig) -> dict[str, tuple[str, ...]]:
    """Map each Stability name to the source's tensors to read; names without tensors are left out."""
    chosen = {}
    for name, alternatives in possible_names(source.layout, model).items():
        for alternative in alternatives:
            if all(part in source.tensors for part in alternative):
                chosen[name] = alternative
                break
    if "ema" not in available_weight_sets(source, model) or len(available_weight_sets(source, model)) == 1:
        return chosen
    averaged = ema_names(source.layout, model)
    if which == "raw":
        return _unswapped(source, chosen) if source.layout == "mindone" else chosen
    for name, average in averaged.items():
        if average in source.tensors:
            chosen[name] = (average,)
        elif name.startswith(UNET):  # the other networks may be frozen, without an average
            chosen.pop(name, None)
    return chosen


def _unswapped(source: WeightSource, chosen: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Use swap.* as the raw weights where the source's main tensors are the moving average.

    MindONE saves train_resume.ckpt while the network holds the average. The raw weights are under swap.* then.
    """
    swapped = {name: (f"swap.{parts[0]}",) for name, parts in chosen.items() if f"swap.{parts[0]}" in source.tensors}
    probe = f"{UNET}time_embed.0.weight"
    if probe not in swapped:
        return chosen
    name = chosen[probe][0]
    if f"ema.{name}" not in source.tensors:
        return chosen
    is_average = np.array_equal(source.tensors[name].float32(), source.tensors[f"ema.{name}"].float32())
    return chosen | swapped if is_average else chosen


def _unexpected(source: WeightSource, chosen: Mapping[str, tuple[str, ...]], model: ModelConfig) -> list[str]:
    known = {part for parts in chosen.values() for part in parts} | set(ema_names(source.layout, model).values())
    for alternatives in possible_names(source.layout, model).values():
        known.update(part for alternative in alternatives for part in alternative)
    if source.layout == "mindone":
        known |= {name.replace("ema.", "swap.", 1) for name in known if name.startswith("ema.")}
    return [name for name in source.tensors if name not in known and not is_unused(name, model)]


def _part_shape(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    return (shape[0] // parts, *shape[1:])


def _fits(found: tuple[int, ...], needed: tuple[int, ...]) -> bool:
    """Return whether the shapes are equal, or one is a matrix and the other its 1x1 kernel (the VAE's attention)."""
    return found == needed or (*found, 1, 1) == needed or found == (*needed, 1, 1)


def _finite(name: str, parts: Sequence[StoredTensor], shape: Shape) -> Float32:
    array = _assembled(parts, shape)
    if not is_finite(array):
        raise ConfigError(f"{parts[0].path}: {name} holds {count_text(array)}; give weights that are finite")
    return array


def _assembled(parts: Sequence[StoredTensor], shape: Shape) -> Float32:
    if len(parts) == 1:
        return parts[0].float32().reshape(shape)
    return np.concatenate([part.float32().reshape(_part_shape(shape, len(parts))) for part in parts])


def _checked(path: Path, tensors: Mapping[str, Float32], name: str, shape: tuple[int, ...]) -> Float32:
    tensor: NDArray[Any] = tensors[name]
    if tensor.shape != shape or tensor.dtype != np.float32:
        raise ConfigError(f"{path}: {name} is {tensor.dtype} {_text(tensor.shape)}, needed float32 {_text(shape)}")
    return tensor


def _refusal(source: WeightSource, counts: Mapping[str, int], faults: list[str], model: ModelConfig) -> str:
    scores = layout_scores(source.tensors, model)
    total = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    return (
        f"{source.path}: nearest layout is {source.layout} ({scores[source.layout]} of "
        f"{len(stability_shapes(model))} tensors), but {total}: {_first(faults)}; give full SD 2.x weights"
    )


def _first(faults: list[str]) -> str:
    return "; ".join(map(printable, faults[:SHOWN])) + (" ..." if len(faults) > SHOWN else "")


def _text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
