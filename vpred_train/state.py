"""Everything that a run is, between two steps; what a checkpoint holds."""

from typing import Any

import numpy as np

from checkpoints_mgr import State
from vpred_train.config import TrainConfig
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.ema.profiles import average_, decays
from vpred_train.flat import FlatArrays
from vpred_train.models.networks import FlatSpace
from vpred_train.optim import OPTIMIZERS


class TrainState:
    """Weights, optimiser moments and moving averages as flat float32 arrays, and the clock `samples_seen`.

    `averages`: by name. `updated_at_samples`: the clock at the last real update, from which the averages go on.
    """

    def __init__(self, config: TrainConfig, space: FlatSpace) -> None:
        self.space, self.config = space, config
        self.weights = space.read()
        self.averages = {name: self.weights.copy() for name in config.ema.names}
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, space.spans, 0, space.size)
        self.samples_seen = 0
        self.optimizer_steps = 0
        self.updated_at_samples = 0

    def update_(self, gradient: FloatArray | FlatArrays, learning_rate: float, scale: float) -> None:
        """One real step of the optimiser and of every average, at `samples_seen`; `scale` multiplies the gradient."""
        self.optimizer_steps += 1
        self.optimizer.update_(self.weights, gradient, self.optimizer_steps, learning_rate, scale)
        decay_of = decays(self.config.ema, self.optimizer_steps, self.updated_at_samples, self.samples_seen)
        for name, average in self.averages.items():
            average_(average, self.weights, decay_of[name])
        self.updated_at_samples = self.samples_seen
        self.space.write(self.weights)

    def whole_average(self, name: str) -> FloatArray:
        """The average of that name, (size,) float32, not to be written to. Called by all ranks."""
        return self.averages[name]

    def to_checkpoint(self) -> State:
        """Named tensors that share this state's memory, and the progress."""
        whole = {
            f"{component}/{name}": tensor
            for component, values in self._components().items()
            for name, tensor in self.space.views(values).items()
        }
        progress = {
            "samples_seen": self.samples_seen,
            "optimizer_steps": self.optimizer_steps,
            "updated_at_samples": self.updated_at_samples,
        }
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
        self.updated_at_samples = int(state.progress["updated_at_samples"])

    def _components(self) -> dict[str, np.ndarray[Any, Any]]:
        # The name of a component has no dots.
        averages = {f"ema_{name.replace('.', '_')}": values for name, values in self.averages.items()}
        return {"model": self.weights, **averages, **self.optimizer.moments}
