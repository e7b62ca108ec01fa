"""vpred-ckpt runs the command of checkpoints_mgr, and writes full models in the layouts of vpred_train.weights."""

import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from checkpoints_mgr import Checkpoint, CheckpointError
from checkpoints_mgr import cli as checkpoint_commands
from launcher.contract import yaml_dialect
from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError, build_document
from vpred_train.config.optimizer import component_of
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.errors import USER_ERRORS
from vpred_train.weights.formats.containers import open_contents
from vpred_train.weights.formats.mindformers_folder import METADATA_FILE, read_iteration
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.detection import LAYOUTS
from vpred_train.weights.layouts.tensor_shapes import stability_name
from vpred_train.weights.whole_model import write_whole


@command_line(*USER_ERRORS, prefix="vpred-ckpt: ")
def main(argv: Sequence[str] | None = None) -> int:
    """Run checkpoints_mgr.cli.main with this package's layouts, and return its exit code."""
    formats = {layout: partial(write_step, layout) for layout in LAYOUTS}
    return checkpoint_commands.main(argv, formats, read_plain)


def write_step(layout: str, step: Path, weights: str, base: Path | None, output: Path) -> str:
    """Write a step's raw weights, or one of its averages, in `layout`. Implements checkpoints_mgr.cli.Format."""
    checkpoint = Checkpoint.open(step)
    try:
        config = recipe_of(checkpoint)
        average = average_of(config, weights)
        component = "model" if average is None else component_of(average)
        names = checkpoint.names(component)
        trained = LazyTensors({stability_name(name): partial(checkpoint.read, component, name) for name in names})
        record = record_of(config, average, int(checkpoint.manifest.progress["samples_seen"]))
        write_whole(output, layout, config, trained, record, base)
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    kind = "LoRA" if config.lora else "full model"
    return f"{output}: {kind}, {layout} layout, {average or 'raw'} weights of {step}"


def read_plain(path: Path) -> dict[str, NDArray[Any]]:
    """Read the tensors of a file in any container, of all files of a folder, or of a mindformers checkpoint.

    Implements checkpoints_mgr.cli.Reader.
    """
    files = sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]
    tensors: dict[str, NDArray[Any]] = {}
    try:
        if path / METADATA_FILE in files:
            return read_iteration(path)
        for file in files:
            found = open_contents(file).tensors
            if twice := sorted(found.keys() & tensors.keys()):
                raise ConfigError(f"{file}: {twice[0]} is in another file of {path} too; give one file")
            tensors |= {name: stored.plain() for name, stored in found.items()}
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    if not tensors:
        raise CheckpointError(f"{path}: holds no tensors; give a .ckpt or safetensors file, or a folder of them")
    return tensors


def recipe_of(checkpoint: Checkpoint) -> TrainConfig:
    """Read the recipe that training has written into its checkpoint. Raises ConfigError: when there is no valid one."""
    text = checkpoint.manifest.record.get("train")
    if text is None:
        raise ConfigError(
            f"{checkpoint.directory}: records no recipe, so the layout of its tensors is unknown; give "
            "--format safetensors"
        )
    try:
        raw = yaml_dialect.parse(text)
    except ValueError as error:
        raise ConfigError(f"{checkpoint.directory}: its recipe cannot be read ({error})") from None
    return build_document(TrainConfig, raw, checkpoint.directory)


def average_of(config: TrainConfig, weights: str) -> str | None:
    """Return the average that --weights means, None for the raw weights. Raises ConfigError: for an unknown one."""
    if weights in ("raw", "ema"):
        return None if weights == "raw" else config.ema.used
    if weights not in config.ema.names:
        raise ConfigError(f"--weights: found {weights!r}; the checkpoint has raw, ema, {', '.join(config.ema.names)}")
    return weights


if __name__ == "__main__":
    sys.exit(main())
