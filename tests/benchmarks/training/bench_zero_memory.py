"""Memory of each rank for the state of training, replicated and sharded (ZeRO stage 1), against its plan.

    .venv/bin/python tests/benchmarks/training/bench_zero_memory.py [--ranks 1 2 4] [--model-channels 96]

Networks, TrainState and its update with made-up gradients; no graph is compiled, so there are no activations. The peak
is the kernel's (VmHWM, begun anew before the networks are built), steady is what stays between two steps: each above
what the process had before the networks, on the rank that has most. Ratio: measured / planned by `memory_plan`.
"""

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from ranks import Rank, Ranks, as_rank
from training_job import resident_bytes

from vpred_train.config.train import TrainConfig
from vpred_train.distributed.flat_arrays import FlatArrays
from vpred_train.estimates.memory import MemoryPlan, memory_plan

STEPS = 3
WARM_UP_ELEMENTS = 1 << 22  # MPI's own buffers are in memory before the first reading


def recipe(model_channels: int, zero_stage: int) -> TrainConfig:
    """A UNet of SD2's structure with a narrow text tower, AdamW and one average."""
    return TrainConfig.model_validate(
        {
            "total_samples": 48,
            "global_batch": 4,
            "zero_stage": zero_stage,
            "trainable": ["unet", "text_encoder"],
            "data": {"path": ".", "resolution": 32},
            "model": {
                "vae": None,
                "unet": {
                    "in_channels": 3,
                    "model_channels": model_channels,
                    "channel_multipliers": [1, 2, 3, 3],
                    "head_channels": 32,
                    "context_channels": 64,
                },
                "text_encoder": {"width": 64, "heads": 1, "layers": 1},
            },
            "optimizer": {"learning_rate": 1e-4},
            "checkpoint": {"every_samples": 48},
        }
    )


def measure(rank: Rank, config: TrainConfig) -> dict[str, int]:
    """Bytes above the start on the rank that has most."""
    from vpred_train.distributed.flat_space import FlatSpace
    from vpred_train.engine.state import TrainState
    from vpred_train.models.networks import Networks

    rank.collective.sum_(np.ones(WARM_UP_ELEMENTS, np.float32))
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_bytes("VmRSS")
    state = TrainState(config, FlatSpace(Networks(config.model, 0), config.trainable), rank.collective)
    for _ in range(STEPS):
        gradient = FlatArrays([np.ones(span.stop - span.start, np.float32) for span in state.space.spans])
        reduced = state.sharding.reduce_(gradient)
        state.samples_seen += config.global_batch
        state.update_(reduced, 1e-4, 1.0)
        del gradient, reduced
    found = {"steady": resident_bytes("VmRSS") - before, "peak": resident_bytes("VmHWM") - before}
    everywhere = rank.collective.allgather_object(found)
    return {kind: max(each[kind] for each in everywhere) for kind in found}


def planned(plan: MemoryPlan) -> dict[str, int]:
    # The gradients stay: many small arrays, which the allocator keeps for the next step as MindSpore's does.
    return dict.fromkeys(("steady", "peak"), plan.total_bytes())


def compare(count: int, model_channels: int, zero_stage: int) -> list[str]:
    """Print one world's figures; its closing lines."""
    plan = memory_plan(recipe(model_channels, zero_stage), count)
    with contextlib.closing(Ranks(__file__, count, 0, str(model_channels), str(zero_stage))) as ranks:
        found: dict[str, Any] = ranks.ask(None)
    closing = []
    for kind, wanted in planned(plan).items():
        print(
            f"{count} ranks, zero_stage {zero_stage}, {plan.learning / 1e6:.1f} M parameters: {kind} "
            f"{found[kind] / 2**20:.0f} MiB, planned {wanted / 2**20:.0f} MiB",
            flush=True,
        )
        closing.append(f"zero_memory_{kind}_{count}_ranks_stage_{zero_stage} ratio {found[kind] / wanted:.3f}")
    return closing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--model-channels", type=int, default=96)
    arguments = parser.parse_args()
    closing = []
    for count in arguments.ranks:
        for zero_stage in (0, 1):
            closing += compare(count, arguments.model_channels, zero_stage)
    print("\n".join(closing))


if __name__ == "__main__":
    joined = as_rank()
    if joined is None:
        main()
    else:
        rank, (channels, stage) = joined
        for _ in rank.requests():
            rank.answer(measure(rank, recipe(int(channels), int(stage))))
