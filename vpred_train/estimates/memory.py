"""Estimates the memory of training on each rank, by kind, from shapes alone.

It builds no network and imports no MindSpore.
Sharding: ZeRO stage 1 (Rajbhandari et al. 2020, arXiv 1910.02054, section 5.1), as implemented by
`vpred_train.distributed.zero`.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from launcher.contract.accelerators import ACCELERATORS
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import PIECE_ELEMENTS
from vpred_train.distributed.flat_arrays import largest_shard, shard_bounds
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_shapes
from vpred_train.weights.lora.factors import attention_targets

Place = Literal["host", "device"]
FLOAT32_BYTES = 4
NOT_COUNTED = (
    "activations",
    "MindSpore's and MPI's own memory",
    "what a checkpoint copies",
    "an average made whole while it is validated, sampled or exported",
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


def memory_plan(config: TrainConfig, world_size: int, accelerator: str = "cpu") -> MemoryPlan:
    """Plan a recipe's memory on `world_size` ranks of an accelerator of `ACCELERATORS`.

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
    if ACCELERATORS[accelerator].device_target == "CPU":
        items = [Item("frozen weights", "host", FLOAT32_BYTES * frozen), *host]
    else:
        on_device = {"frozen weights": frozen, "network weights": learning, "network gradients": learning}
        items = host + [Item(kind, "device", FLOAT32_BYTES * count) for kind, count in on_device.items()]
    return MemoryPlan(world_size, config.zero_stage, learning, frozen, tuple(items))


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


def memory_plans(config: TrainConfig, world_sizes: Sequence[int], accelerator: str) -> list[MemoryPlan]:
    """Plan with ZeRO stage 1 on each number of ranks, then without, where the number does not matter."""
    stages = [(1, world_size) for world_size in world_sizes] + [(0, world_sizes[-1])]
    return [
        memory_plan(config.model_copy(update={"zero_stage": stage}), world_size, accelerator)
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
