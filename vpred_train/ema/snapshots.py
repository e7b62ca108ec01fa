"""Keeps power-function averages on disk during training, one file for each width and time.

RUN/snapshots/power_0.05-0000013600.safetensors holds the trained networks' tensors under Stability's names. Its texts
are the parameterization record, and the width and digest of the values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import ValidationError

from launcher.contract.config import ConfigError, Section
from vpred_train.config.optimizer import power_name
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.formats.safetensors_file import read_safetensors, write_safetensors
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors, StoredTensor
from vpred_train.weights.layouts.record_files import RECORD_KEY, parsed_record

SNAPSHOT_KEY = "ema_snapshot"
HALF_MAX = float(np.finfo(np.float16).max)


class SnapshotText(Section):
    """Holds a snapshot's width and digest.

    xxh3: xxh3-128 of the values in the file's order, as float32
    """

    sigma_rel: float
    xxh3: str


@dataclass(frozen=True)
class Snapshot:
    """Describes one average at one time. Its tensors are read on demand."""

    path: Path
    sigma_rel: float
    xxh3: str
    record: ParameterizationRecord
    stored: dict[str, StoredTensor]

    @property
    def samples_seen(self) -> int:
        """Return the time of the snapshot, in samples seen."""
        return self.record.samples_seen

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Map each tensor's name to its shape."""
        return {name: tensor.shape for name, tensor in self.stored.items()}

    def verify(self) -> None:
        """Raise ConfigError when the values differ from those that were written."""
        found = digest_of(tensor.float32() for tensor in self.stored.values())
        if found != self.xxh3:
            raise ConfigError(
                f"{self.path}: digest mismatch: xxh3 of the values is {found}, {self.xxh3} was written; "
                "copy it again, or remove it"
            )


def write_snapshot(
    folder: Path,
    sigma_rel: float,
    tensors: Mapping[str, Float32],
    dtype: Literal["float16", "float32"],
    record: ParameterizationRecord,
) -> Path:
    """Write one average atomically, and return its path. It replaces the same average of an earlier attempt.

    Raises ValueError: for values that float16 cannot hold.
    """
    folder.mkdir(exist_ok=True)
    path = folder / f"{power_name(sigma_rel)}-{record.samples_seen:010d}.safetensors"
    rounded = LazyTensors({name: partial(_rounded, tensors, name, dtype) for name in tensors})
    text = SnapshotText(sigma_rel=sigma_rel, xxh3=digest_of(rounded.values()))
    texts = {RECORD_KEY: record.model_dump_json(), SNAPSHOT_KEY: text.model_dump_json()}
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    write_safetensors(path, shapes, rounded, texts, "F16" if dtype == "float16" else "F32")
    return path


def find_snapshots(folder: Path) -> list[Snapshot]:
    """Return all snapshots, ordered by time and width.

    Raises ConfigError: when there is none, or one is damaged, of another training, or there twice.
    """
    snapshots = [_read(path) for path in sorted(folder.glob("*.safetensors"))]
    if not snapshots:
        raise ConfigError(
            f"{folder}: no snapshots; they are kept by a run with ema.profiles=[power] and ema.snapshot_every_samples"
        )
    first = snapshots[0]
    for snapshot in snapshots[1:]:
        if (_timeless(snapshot.record), snapshot.shapes) != (_timeless(first.record), first.shapes):
            raise ConfigError(
                f"{snapshot.path}: belongs to another training than {first.path.name}; remove one of them"
            )
    by_profile = {(snapshot.samples_seen, snapshot.sigma_rel): snapshot for snapshot in snapshots}
    for snapshot in snapshots:
        kept = by_profile[snapshot.samples_seen, snapshot.sigma_rel]
        if kept is not snapshot:
            raise ConfigError(f"{snapshot.path}: the same average as {kept.path.name}; remove one of them")
    return [by_profile[key] for key in sorted(by_profile)]


def digest_of(arrays: Iterable[Float32]) -> str:
    """Return the xxh3-128 digest, hexadecimal, of the concatenated float32 arrays."""
    digest = xxhash.xxh3_128()
    for array in arrays:
        digest.update(np.ascontiguousarray(array, np.float32).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _rounded(tensors: Mapping[str, Float32], name: str, dtype: str) -> Float32:
    """Return the tensor as it will be read back from the file."""
    tensor: NDArray[Any] = tensors[name]
    if dtype == "float16" and np.abs(tensor).max(initial=0) > HALF_MAX:
        raise ValueError(f"{name} is too large for float16; set ema.snapshot_dtype to float32")
    return tensor.astype(dtype).astype(np.float32)


def _read(path: Path) -> Snapshot:
    contents = read_safetensors(path)
    try:
        text = SnapshotText.model_validate_json(contents.texts[SNAPSHOT_KEY])
        record = parsed_record(path, contents.texts[RECORD_KEY])
    except (KeyError, ValidationError):
        raise ConfigError(f"{path}: no snapshot of an average; remove it from this folder") from None
    return Snapshot(path, text.sigma_rel, text.xxh3, record, contents.tensors)


def _timeless(record: ParameterizationRecord) -> ParameterizationRecord:
    return record.model_copy(update={"samples_seen": 0, "average": None})
