"""One process of test_graph_cache.py: `python cached_process.py FOLDER SEED` prints a loss and its gradients as JSON.

A process of its own each, since MindSpore's cache is for one start of a program.
"""

import json
import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np

from vpred_train import runtime
from vpred_train.config.train import TrainConfig

CONFIG = TrainConfig.model_validate(
    {
        "total_samples": 4,
        "global_batch": 4,
        "trainable": ["unet", "text_encoder"],
        "data": {"path": ".", "resolution": 8},
        "model": {"vae": None, "unet": {"in_channels": 3}},
        "optimizer": {"learning_rate": 1},
        "checkpoint": {"every_samples": 4},
    }
)


def make_cell(seed: int) -> Any:
    """The loss mean |x W^T + b - y|^2 and its gradients by W (2, 3) and b (2,), which are random."""
    from mindspore import Tensor, nn

    from vpred_train.engine.step import LossAndGradients
    from vpred_train.models.layers import Linear

    class Loss(nn.Cell):
        def __init__(self, layer: nn.Cell) -> None:
            super().__init__()
            self.layer = layer

        def construct(self, x: Tensor, y: Tensor, weight: Tensor, timesteps: Tensor, tokens: Tensor) -> Tensor:
            return ((self.layer(x) - y) ** 2).mean()

    layer = Linear(np.random.default_rng(seed), 3, 2)
    return LossAndGradients(Loss(layer), list(layer.get_parameters()))


def make_inputs(rows: int = 4) -> tuple[Any, ...]:
    """x (rows, 3) and y (rows, 2), and what the loss does not read."""
    from mindspore import Tensor

    rng = np.random.default_rng(9)
    arrays = [rng.standard_normal((rows, width)).astype(np.float32) for width in (3, 2)]
    return (*map(Tensor, arrays), *[Tensor(np.zeros(1, np.float32))] * 3)


def main() -> None:
    logging.basicConfig(level=logging.INFO)
    runtime.start_single()
    from mindspore import Tensor, ops

    from vpred_train.engine.graph_cache import CachedGraph

    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    if folder.exists():  # the restart compiles something else first
        assert ops.relu(Tensor(np.array([-1, 2], np.float32))).asnumpy().tolist() == [0, 2]
    cell = make_cell(seed)
    loss, gradients = CachedGraph(cell, CONFIG, folder)(*make_inputs())
    parameters = [each.asnumpy().tolist() for each in cell.get_parameters()]
    print(json.dumps([loss.asnumpy().tolist(), [each.asnumpy().tolist() for each in gradients], parameters]))


if __name__ == "__main__":
    main()
