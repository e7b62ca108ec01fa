"""Weights on disk: one safetensors file with the parameterization record in its header."""

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from launcher.contract.config import ConfigError
from launcher.contract.files import write_atomic
from vpred_train.diffusion.parameterization import ParameterizationRecord

RECORD_KEY = "parameterization"


def export_weights(path: Path, tensors: dict[str, np.ndarray[Any, Any]], record: ParameterizationRecord) -> None:
    """Write named tensors and the record atomically."""
    write_atomic(path, save(tensors, metadata={RECORD_KEY: record.model_dump_json()}))


def read_record(path: Path) -> ParameterizationRecord:
    """The record in the header of `path`. Raises ConfigError for a file that is not ours."""
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(RECORD_KEY)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: not a readable safetensors file ({error}); give one that a run exported") from None
    if text is None:
        raise ConfigError(f"{path}: holds no '{RECORD_KEY}' record in its header; give a file that a run exported")
    try:
        return ParameterizationRecord.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"{path}: parameterization record: {where}: {first['msg']}; was it written by a newer version?"
        ) from None


def read_tensors(path: Path, expected: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray[Any, Any]]:
    """The tensors of `path`; names and shapes must be `expected`. Raises ConfigError listing the first ten faults."""
    with safe_open(path, framework="np") as file:
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no dict)
        faults = [f"missing {name}" for name in expected if name not in shapes]
        faults += [f"unexpected {name}" for name in shapes if name not in expected]
        faults += [
            f"{name} is {shapes[name]}, needed {shape}"
            for name, shape in expected.items()
            if name in shapes and shapes[name] != shape
        ]
        if faults:
            shown = "; ".join(faults[:10])
            raise ConfigError(f"{path}: {len(faults)} tensors do not fit the model its record describes: {shown}")
        return {name: file.get_tensor(name) for name in expected}
