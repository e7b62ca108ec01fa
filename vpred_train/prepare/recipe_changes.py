"""Compares recipes, and decides which keys may change when a run is resumed.

A key's `on_resume`, declared beside the key, is one of three kinds:
fixed: the default; another value is another run
logged: the key may change, and the report lists when it did
machine: where data lie and how many processes read them; digests prove that the data are the same
A section's kind holds for its keys that declare none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError, build_document, load_document
from launcher.contract.run_dir import RunDir
from vpred_train.config.train import TrainConfig

OnResume = Literal["fixed", "logged", "machine"]

_SHOWN = 5


@dataclass(frozen=True)
class Change:
    """Holds a key whose value has changed.

    before, after: the values as JSON
    refusal: why the run cannot continue with it, "" when it can
    """

    key: str
    before: Any
    after: Any
    on_resume: OnResume
    refusal: str = ""


def changes(before: TrainConfig, after: TrainConfig) -> list[Change]:
    """List the keys whose values differ, in the order of the document."""
    found = []
    for key, old, new, on_resume in _differing(before, after, "fixed", ""):
        refusal = "it never changes within a run" if on_resume == "fixed" else ""
        if key == "total_samples":
            refusal = _why_not_longer(before, after)
        found.append(Change(key, to_jsonable_python(old), to_jsonable_python(new), on_resume, refusal))
    return found


def check_run_dir(run: RunDir, config: TrainConfig) -> None:
    """Raise ConfigError when `run` was started with another recipe than `config`."""
    if run.train_yaml.exists():
        refuse(run.root, changes(load_document(TrainConfig, run.train_yaml), config))


def refuse(where: object, found: Iterable[Change]) -> None:
    """Raise ConfigError when a run cannot continue with some of the changes. The message names them."""
    refused = [each for each in found if each.refusal]
    if not refused:
        return
    shown = "; ".join(
        f"{each.key} ({each.before!r} there, {each.after!r} here): {each.refusal}" for each in refused[:_SHOWN]
    )
    more = f"; and {len(refused) - _SHOWN} more" if len(refused) > _SHOWN else ""
    raise ConfigError(
        f"{where}: belongs to a different recipe: {shown}{more}; put these back, or give another --run-dir "
        "(from this run's weights: vpred-ckpt consolidate, then pretrained.path)"
    )


def recorded_recipe(text: str) -> TrainConfig:
    """Parse the recipe that a checkpoint records as YAML. Raises ConfigError: when it is not valid."""
    return build_document(TrainConfig, yaml_dialect.parse(text), Path("the checkpoint's recipe"))


def _differing(
    before: BaseModel, after: BaseModel, kind: OnResume, prefix: str
) -> Iterator[tuple[str, Any, Any, OnResume]]:
    for name, field in type(after).model_fields.items():
        declared = field.json_schema_extra
        own: Any = declared.get("on_resume", kind) if isinstance(declared, dict) else kind
        for key, old, new in _paired(f"{prefix}{name}", getattr(before, name), getattr(after, name)):
            if isinstance(old, BaseModel) and isinstance(new, BaseModel):
                yield from _differing(old, new, own, f"{key}.")
            elif old != new:
                yield key, old, new, own


def _paired(key: str, before: Any, after: Any) -> list[tuple[str, Any, Any]]:
    """Pair two lists of equally many sections element by element. Pair all other values as they are."""
    lists = isinstance(before, tuple) and isinstance(after, tuple) and len(before) == len(after)
    if lists and all(isinstance(each, BaseModel) for each in (*before, *after)):
        return [(f"{key}.{number}", *pair) for number, pair in enumerate(zip(before, after, strict=True))]
    return [(key, before, after)]


def _why_not_longer(before: TrainConfig, after: TrainConfig) -> str:
    if after.total_samples < before.total_samples:
        return "a run can get longer, but not shorter"
    if not after.schedule.is_extendable:
        return f"the {after.schedule.name} schedule depends on it; a run gets longer with constant or multi_step"
    return ""
