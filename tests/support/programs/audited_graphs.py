"""Compiles the project's graphs with Ascend's operations, as far as MindSpore goes without an NPU.

audited_graphs.py DTYPE: MindSpore saves the intermediate representation where MS_DEV_SAVE_GRAPHS_PATH says.
"""

import sys

import numpy as np
from mindspore import Tensor, nn, ops

from launcher.contract.accelerators import ACCELERATORS
from support.weights_files import MODEL
from vpred_train.kernels import implementations

# Heads of 16 channels, the narrowest that flash attention takes.
NARROW = MODEL.model_copy(
    update={
        "unet": MODEL.unet.model_copy(update={"model_channels": 16, "head_channels": 16}),
        "text_encoder": MODEL.text_encoder.model_copy(update={"layers": 2, "vocabulary_size": 64}),
    }
)


class OnCpuAlone(nn.Cell):
    """Holds a planted operation that MindSpore has for CPU alone."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.lgamma(x)


def random(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def graphs(dtype: str) -> dict[str, tuple[nn.Cell, tuple[Tensor, ...]]]:
    """Name -> the graph, and inputs for it."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.host.step import LossAndGradients
    from vpred_train.engine.objective import DiffusionLoss
    from vpred_train.models.latents import LatentSpace
    from vpred_train.models.networks import Networks

    networks = Networks(NARROW, 0, dtype)
    space = FlatSpace(networks, ("unet", "text_encoder"))
    latents = LatentSpace(networks.vae, NARROW.vae)
    tokens = Tensor(np.zeros((2, NARROW.text_encoder.context_length), np.int32))
    z, one_each = random(2, 4, 15, 16), random(2)
    return {
        "training": (LossAndGradients(DiffusionLoss(networks), space.parameters), (z, z, one_each, one_each, tokens)),
        "encoding": (latents.posterior_graph, (random(1, 3, 64, 64),)),
        "text": (networks.text_encoder, (tokens,)),
        "sampling": (networks.unet, (z, one_each, random(2, 77, 8))),
        "decoding": (latents.decode_graph, (random(1, 4, 8, 8),)),
        "planted": (OnCpuAlone(), (random(4, 4),)),
    }


def main() -> None:
    dtype, *names = sys.argv[1:]
    implementations.choose(ACCELERATORS["ascend"].operations)
    cells = graphs(dtype)
    for name in names:
        cell, inputs = cells[name]
        try:
            cell.compile(*inputs)
        except (RuntimeError, TypeError) as error:
            print(name, str(error).splitlines()[:12])


if __name__ == "__main__":
    main()
