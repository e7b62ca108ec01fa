"""Compiles the project's graphs with Ascend's operations, as far as MindSpore goes without an NPU.

audited_graphs.py DTYPE NAME...: MindSpore saves the intermediate representation where MS_DEV_SAVE_GRAPHS_PATH says.
"""

import sys
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops

from launcher.contract.accelerators import ACCELERATORS, ComputeDtype
from support.small_training import DOCUMENT
from support.weights_files import MODEL
from vpred_train.config.train import TrainConfig
from vpred_train.host_copies import to_device
from vpred_train.kernels import implementations

# Heads of 16 channels, the narrowest that flash attention takes.
NARROW = MODEL.model_copy(
    update={
        "unet": MODEL.unet.model_copy(update={"model_channels": 16, "head_channels": 16}),
        "text_encoder": MODEL.text_encoder.model_copy(update={"layers": 2}),
    }
)
SIDE = (15, 16)  # of the latents; an odd one is cropped on the way up


class OnCpuAlone(nn.Cell):
    """Holds a planted operation that MindSpore does not have for Ascend."""

    def construct(self, x: Tensor) -> Tensor:
        return ops.lgamma(x)


def random(*shape: int) -> Tensor:
    return Tensor(np.random.default_rng(0).standard_normal(shape).astype(np.float32))


def step_graphs(networks: Any, **keys: Any) -> tuple[Any, ...]:
    """The graphs of the device engine's step of a recipe, in one process."""
    from vpred_train.distributed.collectives import SingleProcess
    from vpred_train.engine.engines import ENGINES
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.engine.progress import Progress

    pretrained = {"pretrained": {"path": "."}}  # a model with an autoencoder has to start from weights
    config = TrainConfig.model_validate(DOCUMENT | pretrained | {"model": NARROW.model_dump()} | keys)
    config = config.model_copy(update={"precision": config.precision.on(ACCELERATORS["cpu"])})
    inputs = OnlineInputs(config.model, config.data, config.seed, networks)
    _, step = ENGINES["device"](
        config, networks, SingleProcess(), ACCELERATORS["cpu"], Progress.fresh(config), inputs, None
    )
    step.state.progress.samples_seen = config.global_batch
    return (*step.graphs, to_device(step.numbers(1e-3)))


def graphs(dtype: ComputeDtype) -> dict[str, tuple[nn.Cell, tuple[Tensor, ...]]]:
    """Name -> the graph, and inputs for it."""
    from vpred_train.models.latents import LatentSpace
    from vpred_train.models.networks import Networks

    networks = Networks(NARROW, 0, dtype)
    assert NARROW.vae is not None
    latents = LatentSpace(networks.vae, NARROW.vae)
    tokens = Tensor(np.zeros((2, NARROW.text_encoder.context_length), np.int32))
    z, one_each = random(2, 4, *SIDE), random(2)
    whole, numbers = step_graphs(networks)
    _, update, other_numbers = step_graphs(
        networks,
        gradient_accumulation_steps=2,
        optimizer={"name": "sgd", "momentum": 0.9, "learning_rate": 1e-3},
    )
    return {
        "training": (whole, (z, z, one_each, one_each, tokens, numbers)),
        "update": (update, (other_numbers,)),
        "encoding": (latents.posterior_graph, (random(1, 3, 64, 64),)),
        "text": (networks.text_encoder, (tokens,)),
        "sampling": (networks.unet, (z, one_each, random(2, 77, 8))),
        "decoding": (latents.decode_graph, (random(1, 4, 8, 8),)),
        "planted": (OnCpuAlone(), (random(4, 4),)),
    }


def main() -> None:
    dtype, *names = sys.argv[1:]
    implementations.choose(ACCELERATORS["ascend"].operations)
    cells = graphs(dtype)  # type: ignore[arg-type]  # from the command line
    for name in names:
        cell, inputs = cells[name]
        try:
            cell.compile(*inputs)
        except (RuntimeError, TypeError) as error:
            # The graph is saved by then. MindSpore looks for kernels afterwards, and has none on CPU for some.
            print(name, str(error).strip().splitlines()[:4])


if __name__ == "__main__":
    main()
