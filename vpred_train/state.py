"""Everything that a run is, between two steps; what a checkpoint holds."""

from typing import Any

import numpy as np

from checkpoints_mgr import State
from vpred_train.config import TrainConfig
from vpred_train.models.networks import FlatSpace
from vpred_train.optim import AdamW


class TrainState:
    """Weights, optimiser moments and EMA as flat float32 arrays, and the clock `samples_seen`."""

    def __init__(self, config: TrainConfig, space: FlatSpace) -> None:
        self.space = space
        self.weights = space.read()
        self.ema = self.weights.copy()
        self.optimizer = AdamW(config.optimizer, space.spans)
        self.samples_seen = 0
        self.optimizer_steps = 0

    def to_checkpoint(self) -> State:
        """Named tensors that share this state's memory, and the progress."""
        whole = {
            f"{component}/{name}": tensor
            for component, values in self._components().items()
            for name, tensor in self.space.views(values).items()
        }
        progress = {"samples_seen": self.samples_seen, "optimizer_steps": self.optimizer_steps}
        return State(whole=whole, progress=progress)

    def from_checkpoint(self, state: State) -> None:
        """Take over a checkpoint of the same networks. Raises ValueError naming what is missing or misshapen."""
        for component, values in self._components().items():
            for name, tensor in self.space.views(values).items():
                found = state.whole.get(f"{component}/{name}")
                if found is None or found.shape != tensor.shape:
                    shape = "nothing" if found is None else found.shape
                    raise ValueError(f"checkpoint holds {shape} for {component}/{name}, needed {tensor.shape}")
                np.copyto(tensor, found)
        self.samples_seen = int(state.progress["samples_seen"])
        self.optimizer_steps = int(state.progress["optimizer_steps"])

    def _components(self) -> dict[str, np.ndarray[Any, Any]]:
        optimizer = self.optimizer
        return {"model": self.weights, "ema": self.ema, "adam_m": optimizer.m, "adam_v": optimizer.v}
