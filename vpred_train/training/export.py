"""Writes a run's weights as files: under Stability's names at its end, in MindONE's layout during training."""

import math
from functools import partial
from pathlib import Path

import numpy as np

from launcher.contract.run_dir import Phase
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import record_of
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.protocol import TrainingState
from vpred_train.models.networks import Networks
from vpred_train.models.weights import get_weights
from vpred_train.training.hooks.hook import Hook
from vpred_train.weights.formats.stored_tensor import Float32, LazyTensors
from vpred_train.weights.layouts.read_write import write_weights
from vpred_train.weights.layouts.tensor_shapes import stability_name
from vpred_train.weights.lora.factors import factors_of
from vpred_train.weights.lora.files import write_lora
from vpred_train.weights.pretrained import open_pretrained

MINDONE_KEPT = 10  # as many as MindONE's training keeps


def export(config: TrainConfig, networks: Networks, state: TrainingState, folder: Path, writes: bool) -> Path:
    """Write the raw weights and every average under Stability's names, and return the path of ema.safetensors.

    The files are raw.safetensors, ema.safetensors (the average of `ema.use`), and ema_NAME.safetensors for each other
    average. Each holds the full model, or with `lora` the factors.
    Called by all ranks, since each has a share of the averages.

    writes: this rank writes the files; true on one rank.
    """
    for average in (None, *config.ema.names):
        stem = "raw" if average is None else "ema" if average == config.ema.used else f"ema_{average}"
        write_average(folder / f"{stem}.safetensors", "stability", config, networks, state, average, writes)
    return folder / "ema.safetensors"


def write_average(
    path: Path,
    layout: str,
    config: TrainConfig,
    networks: Networks,
    state: TrainingState,
    average: str | None,
    writes: bool,
) -> None:
    """Write one average in `layout`: the full model, or with `lora` the factors. Called by all ranks.

    average: name of the average; None means the raw weights.
    """
    values = state.full(average)
    if not writes:
        return
    path.parent.mkdir(exist_ok=True)
    record = record_of(config, average, state.progress.samples_seen)
    named = views_to_export(state.space, values)
    if config.lora is not None:
        write_lora(path, factors_of(named, config.lora), layout, record)
        return
    # Networks that the run did not build are copied unchanged from the pretrained file.
    frozen = {**open_pretrained(config).makers, **get_weights(networks).makers}
    trained = {name: partial(np.asarray, tensor) for name, tensor in named.items()}
    write_weights(path, LazyTensors({**frozen, **trained}), layout, record)


class MindoneCkptHook(Hook):
    """Writes sd-N.ckpt with each checkpoint, and removes the one written `MINDONE_KEPT` checkpoints ago.

    Other files with such names may belong to another run, and stay.
    The hook runs on all ranks, since each has a share of the average.

    writes: this rank writes the files; true on one rank.
    """

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        state: TrainingState,
        folder: Path,
        unit_samples: int,
        writes: bool,
    ) -> None:
        self.config, self.networks, self.state = config, networks, state
        self.folder, self.unit_samples, self.writes = folder, unit_samples, writes

    def on_phase(self, phase: Phase, step: int, samples_seen: int) -> None:
        if phase != "checkpointing":  # write when the save begins: later the weights have changed
            return
        every = self.config.checkpoint.every_samples
        if samples_seen % self.unit_samples:
            return  # a run that was stopped within an epoch resumes from its own checkpoint
        used = self.config.ema.used
        write_average(self._path(samples_seen), "mindone", self.config, self.networks, self.state, used, self.writes)
        expired = (math.ceil(samples_seen / every) - MINDONE_KEPT) * every
        if self.writes and expired > 0:
            self._path(expired).unlink(missing_ok=True)

    def _path(self, samples_seen: int) -> Path:
        return self.folder / f"sd-{samples_seen // self.unit_samples}.ckpt"


def views_to_export(space: FlatSpace, values: FloatArray) -> dict[str, Float32]:
    """Return `values` (space.size,) as tensors under Stability's names. They share its memory."""
    return {stability_name(name): tensor for name, tensor in space.views(values).items()}
