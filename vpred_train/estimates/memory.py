"""Estimates the memory of training on each rank, by kind, from shapes alone.

It builds no network and imports no MindSpore.
Sharding: ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1), as implemented by
`vpred_train.distributed.zero` for engine host. Engine device shards the master weights too.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from launcher.contract.accelerators import Accelerator, accelerator_with
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import PIECE_ELEMENTS
from vpred_train.distributed.flat_arrays import largest_shard, shard_bounds
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_shapes
from vpred_train.weights.lora.factors import attention_targets

Place = Literal["host", "device"]
FLOAT32_BYTES = 4
# Engine device reduces gradients in buckets of at most this many elements and tensors, padded to units per rank.
BUCKET_ELEMENTS = 1 << 25
BUCKET_TENSORS = 100
BUCKET_UNIT = 128
HCCL_BYTES = 2 * 200_000_000  # HCCL reserves twice HCCL_BUFFSIZE for each communicator, by default 2 x 200 MB
NOT_COUNTED = (
    "activations",
    "MindSpore's and MPI's own memory",
    "the copy of a checkpoint",
    "an average gathered for validation, sampling or export",
)
NOT_COUNTED_ON_DEVICE = (
    "activations",
    "MindSpore's own memory",
    "an average made whole while it is sampled or exported",
)


@dataclass(frozen=True)
class Item:
    """Holds one kind of array and its bytes on the rank that has most of it."""

    kind: str
    place: Place
    nbytes: int


@dataclass(frozen=True)
class MemoryPlan:
    """Holds the arrays of one rank among `world_size`.

    learning, frozen: number of parameters, float32 each
    """

    world_size: int
    zero_stage: int
    learning: int
    frozen: int
    items: tuple[Item, ...]
    not_counted: tuple[str, ...] = NOT_COUNTED

    def total_bytes(self, place: Place = "host") -> int:
        """Return the bytes of all kinds in one place."""
        return sum(item.nbytes for item in self.items if item.place == place)

    def to_json(self) -> dict[str, Any]:
        """Return the plan as printed by `--json`."""
        totals = {place: self.total_bytes(place) for place in self.places}
        return {**asdict(self), "total_bytes": totals}

    @property
    def places(self) -> tuple[Place, ...]:
        """Return the places that hold arrays, the host first."""
        return tuple(dict.fromkeys(item.place for item in self.items))


def memory_plan(
    config: TrainConfig, world_size: int, accelerator: str = "cpu", engine: Literal["auto", "host", "device"] = "auto"
) -> MemoryPlan:
    """Plan a recipe's memory on `world_size` ranks of an accelerator of `ACCELERATORS`.

    engine: host, device, or "auto" for the accelerator's
    """
    chosen = accelerator_with(accelerator, engine)
    return (plan_on_device if chosen.engine == "device" else plan_on_host)(config, world_size, chosen)


def plan_on_host(config: TrainConfig, world_size: int, accelerator: Accelerator) -> MemoryPlan:
    """Plan engine host, which keeps the flat arrays of weights, gradients and optimiser on the host.

    On CPU the networks share the memory of the flat weights and gradients. Other devices hold separate copies.
    """
    learning, frozen = parameter_counts(config)
    sharded = config.zero_stage == 1 and world_size > 1
    local = largest_shard(shard_bounds(learning, world_size)) if sharded else learning
    counts = {"weights": learning, "gradients": learning}
    if config.gradient_accumulation_steps > 1:
        counts["gradients of a micro-batch"] = learning
    if sharded:
        counts["collective buffers"] = PIECE_ELEMENTS
    counts |= dict.fromkeys(config.optimizer.moment_names, local)
    counts |= dict.fromkeys((f"average {name}" for name in config.ema.names), local)
    host = [Item(kind, "host", FLOAT32_BYTES * count) for kind, count in counts.items()]
    if accelerator.device_target == "CPU":
        items = [Item("frozen weights", "host", FLOAT32_BYTES * frozen), *host]
    else:
        on_device = {"frozen weights": frozen, "network weights": learning, "network gradients": learning}
        items = host + [Item(kind, "device", FLOAT32_BYTES * count) for kind, count in on_device.items()]
    return MemoryPlan(world_size, config.zero_stage, learning, frozen, tuple(items))


def plan_on_device(config: TrainConfig, world_size: int, accelerator: Accelerator) -> MemoryPlan:
    """Plan engine device: networks and state on the device, and on the host what a checkpoint copies.

    The device's total is its peak, at the end of the backward pass. Each rank holds 4 bytes of weights and 4 of
    gradients for each parameter that learns, and 1 / world_size of master weights, moments and averages, 4 bytes each.
    """
    learning, frozen = parameter_counts(config)
    sharers = world_size if config.zero_stage == 1 else 1
    local = -(-learning // sharers) + _padding(config, learning, sharers)
    counts = {"frozen weights": frozen, "weights": learning, "gradients": learning}
    if config.gradient_accumulation_steps > 1:
        counts["accumulated gradients"] = learning
    names = ["master weights", *config.optimizer.moment_names, *(f"average {name}" for name in config.ema.names)]
    counts |= dict.fromkeys(names, local)
    counts["a bucket of gradients"] = min(BUCKET_ELEMENTS, learning)
    place: Place = "host" if accelerator.device_target == "CPU" else "device"
    items = [Item(kind, place, FLOAT32_BYTES * count) for kind, count in counts.items()]
    if accelerator.collective == "hccl" and world_size > 1:
        items.append(Item("HCCL buffers", place, HCCL_BYTES))
    items.append(Item("copy for a checkpoint", "host", FLOAT32_BYTES * local * len(names)))
    items.sort(key=lambda item: item.place, reverse=True)  # the host first
    return MemoryPlan(world_size, config.zero_stage, learning, frozen, tuple(items), NOT_COUNTED_ON_DEVICE)


def _padding(config: TrainConfig, learning: int, sharers: int) -> int:
    """Return the most elements that pad this rank's part of all buckets: two neighbours are more than one bucket."""
    tensors = len(stability_shapes(config.model))
    buckets = 2 + 2 * (learning // BUCKET_ELEMENTS) + tensors // BUCKET_TENSORS
    return buckets * BUCKET_UNIT if sharers > 1 else 0


def parameter_counts(config: TrainConfig) -> tuple[int, int]:
    """Count the parameters that learn, and those that do not. Their sum is all that the networks in training hold."""
    there = tuple(COMPONENTS[network] for network in config.networks_in_training)
    shapes = stability_shapes(config.model)
    sizes = {name: math.prod(shape) for name, shape in shapes.items() if name.startswith(there)}
    if config.lora is not None:
        targets = attention_targets(config.model, config.trainable)
        return config.lora.rank * sum(sum(shape) for shape in targets.values()), sum(sizes.values())
    prefixes = tuple(COMPONENTS[network] for network in config.trainable)
    learning = sum(size for name, size in sizes.items() if name.startswith(prefixes))
    return learning, sum(sizes.values()) - learning


def memory_plans(
    config: TrainConfig,
    world_sizes: Sequence[int],
    accelerator: str,
    engine: Literal["auto", "host", "device"] = "auto",
) -> list[MemoryPlan]:
    """Plan with ZeRO stage 1 on each number of ranks, then without, where the number does not matter."""
    stages = [(1, world_size) for world_size in world_sizes] + [(0, world_sizes[-1])]
    return [
        memory_plan(config.model_copy(update={"zero_stage": stage}), world_size, accelerator, engine)
        for stage, world_size in stages
    ]


def table(plans: Sequence[MemoryPlan]) -> str:
    """Format the plans of `memory_plans` side by side, in MB."""
    columns = [{(item.place, item.kind): item.nbytes for item in plan.items} for plan in plans]
    headings = [f"{plan.world_size} ranks" if plan.zero_stage else "zero_stage 0" for plan in plans]
    rows = [("zero_stage 1 on", headings)]
    for place in plans[0].places:
        kinds = dict.fromkeys(kind for column in columns for where, kind in column if where == place)
        rows += [
            (
                kind if place == "host" else f"{kind} ({place})",
                [_megabytes(column.get((place, kind))) for column in columns],
            )
            for kind in kinds
        ]
        rows.append((f"{place} total", [_megabytes(plan.total_bytes(place)) for plan in plans]))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:{width}}" + "".join(f"{figure:>14}" for figure in figures) for name, figures in rows]
    first = f"{plans[0].learning:,} parameters learn, {plans[0].frozen:,} do not; MB (10^6 bytes) of each rank"
    return "\n".join([first, *lines, f"not counted: {', '.join(plans[0].not_counted)}"])


def _megabytes(nbytes: int | None) -> str:
    return "-" if nbytes is None else f"{nbytes / 1e6:,.1f}"
