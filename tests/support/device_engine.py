"""Both engines of a recipe side by side, with shares of one global batch, and the comparison of their states."""

from dataclasses import replace
from typing import Any

import numpy as np

from checkpoints_mgr import State
from data import Batch
from launcher.contract.accelerators import ACCELERATORS
from support.host_engine import host_step
from support.small_training import DOCUMENT, MODEL, batch
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, SingleProcess

FLAT_UNET = MODEL["unet"] | {"channel_multipliers": [1], "attention_levels": [0]}  # sooner compiled
BUCKET_ELEMENTS = 1 << 11  # so that the small networks fill several buckets; some tensors are larger
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"name": "adamw"},
    "adam_weight_decay": {"name": "adam_weight_decay", "epsilon": 1e-6},
    "sgd": {"name": "sgd", "momentum": 0.9},
    "sgd without momentum": {"name": "sgd"},
}


def recipe(kind: str = "adamw", **keys: Any) -> TrainConfig:
    """A small recipe in which weights decay and gradients are clipped."""
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "max_grad_norm": 0.5, **OPTIMIZERS[kind]}
    config = TrainConfig.model_validate(DOCUMENT | {"model": MODEL | {"unet": FLAT_UNET}, "optimizer": settings} | keys)
    return config.model_copy(update={"precision": config.precision.on(ACCELERATORS["cpu"])})


def device_step(
    config: TrainConfig, networks: Any, collective: Collective | None = None, inputs: Any = None, folder: Any = None
) -> Any:
    """A step of the device engine on CPU, with its `state`, from the networks' weights."""
    from vpred_train.engine.device import state
    from vpred_train.engine.engines import make_device
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.engine.progress import Progress

    state.MAX_ELEMENTS = BUCKET_ELEMENTS
    inputs = inputs or OnlineInputs(config.model, config.data, config.seed, networks)
    progress, accelerator = Progress.fresh(config), ACCELERATORS["cpu"]
    _, step = make_device(config, networks, collective or SingleProcess(), accelerator, progress, inputs, folder)
    return step


def pair(config: TrainConfig, inputs: Any = None) -> tuple[Any, Any]:
    """Steps of the host engine and of the device engine, from the same weights."""
    from vpred_train.models.networks import Networks

    return tuple(  # type: ignore[return-value]
        make(config, Networks(config.model, config.seed, config.precision.dtype), inputs=inputs)
        for make in (host_step, device_step)
    )


def share(whole: Batch, rank: int, ranks: int) -> Batch:
    """A rank's share of a global batch."""
    return replace(whole.part(rank, ranks), samples_seen=whole.samples_seen)


def poisoned(whole: Batch) -> Batch:
    """The batch with an infinite last image, which the last rank has."""
    images = whole.images.copy()
    images[-1] = np.inf
    return replace(whole, arrays={"images": images})


def batches(config: TrainConfig, count: int, bad: int | None = None, first: int = 0) -> list[Batch]:
    found = [batch(config, number) for number in range(first, first + count)]
    return [poisoned(each) if each.samples_seen == ((bad or -1) + 1) * config.global_batch else each for each in found]


def tensors(state: State, space: Any) -> dict[str, FloatArray]:
    """All tensors of a state whose shards, if any, are those of a single rank."""
    found = {name: np.array(values) for name, values in state.whole.items()}
    for component, shard in state.shards.items():
        for each in shard.segments:
            values = shard.values[each.start : each.start + each.high - each.low]
            found[f"{component}/{each.tensor}"] = values.reshape(space.shapes[each.tensor]).copy()
    return found


def worst(found: dict[str, FloatArray], expected: dict[str, FloatArray]) -> float:
    """The largest deviation of a tensor, as a share of its component's largest value."""
    assert found.keys() == expected.keys()
    largest: dict[str, float] = {}
    for name, values in expected.items():
        component = name.split("/")[0]
        largest[component] = max(largest.get(component, 1e-30), float(np.abs(values).max()))
    return max(float(np.abs(found[name] - expected[name]).max()) / largest[name.split("/")[0]] for name in expected)


def same_bits(found: dict[str, FloatArray], expected: dict[str, FloatArray]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].tobytes() == values.tobytes() for name, values in expected.items()
    )
