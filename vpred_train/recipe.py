"""A recipe file plus overrides, resolved and checked against its data; without MindSpore."""

from collections.abc import Sequence
from pathlib import Path

from data import Source, read_csv_folder
from launcher.contract.config import ConfigError, load_document
from vpred_train.config import TrainConfig


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and resolve: a relative `data.path` counts from the recipe's folder, an overriding one from here."""
    config = load_document(TrainConfig, path, overrides)
    overridden = any(override.split("=")[0] == "data.path" for override in overrides)
    base = Path.cwd() if overridden else path.resolve().parent
    data = config.data.model_copy(update={"path": (base / config.data.path).resolve()})
    return config.model_copy(update={"data": data})


def check_world_size(config: TrainConfig, world_size: int) -> None:
    """Raise ConfigError when the global batch cannot be shared out evenly."""
    if config.global_batch % world_size:
        below = config.global_batch // world_size * world_size
        near = " or ".join(str(size) for size in (below, below + world_size) if size)
        raise ConfigError(
            f"global_batch: found {config.global_batch} for {world_size} ranks "
            f"(must be a multiple of the ranks); give {near}, or another number of ranks"
        )


def open_data(config: TrainConfig) -> Source:
    """The training samples; all bad rows are found now. Raises DataError."""
    return read_csv_folder(config.data.path)
