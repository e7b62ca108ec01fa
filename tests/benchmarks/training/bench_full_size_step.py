"""Optimiser steps of Stable Diffusion 2's UNet at full size, 865,910,724 parameters, in this machine's memory.

    .venv/bin/python tests/benchmarks/training/bench_full_size_step.py

One process: random weights, 64 x 64 pixels, batch 1, frozen text encoder and autoencoder, AdamW and one moving average
in float32: 17.3 GB of weights, gradient, two moments and average. It ends itself before the machine is out of memory.
Ceiling of the ratio: those 17.3 GB and the frozen networks' weights, against the process's peak.
"""

import argparse
import faulthandler
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil
from training_job import make_batch, make_step, resident_bytes

from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import SingleProcess

POLL_S = 0.05
ARRAYS = 5  # weights, gradient, two moments, one average


def recipe(model_channels: int) -> TrainConfig:
    """SD2 with a UNet of this width."""
    return TrainConfig.model_validate(
        {
            "total_samples": 100,
            "global_batch": 1,
            "trainable": ["unet"],
            "data": {"path": ".", "resolution": 64},
            # Never read: weights of this shape are random here.
            "pretrained": {"path": "none"},
            "model": {"unet": {"model_channels": model_channels}},
            "optimizer": {"learning_rate": 1e-5},
            "checkpoint": {"every_samples": 100},
        }
    )


def stop_before_memory_ends(reserve_bytes: int) -> None:
    """End this process as soon as less is available on the machine."""

    def watch() -> None:
        while psutil.virtual_memory().available > reserve_bytes:
            time.sleep(POLL_S)
        print(f"gave up: less than {reserve_bytes / 2**30:.1f} GiB available; {memory()}", flush=True)
        faulthandler.dump_traceback(all_threads=True)  # what took it
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def memory() -> str:
    """Now and at most, in words."""
    return f"{resident_bytes('VmRSS') / 2**30:.2f} GiB, peak {resident_bytes('VmHWM') / 2**30:.2f} GiB"


def train(config: TrainConfig, steps: int, graphs: Path) -> None:
    """Take the steps and print what they cost."""
    from vpred_train.engine.graph_cache import CachedGraph

    started = time.perf_counter()
    step = make_step(config, SingleProcess())
    # As a run does: compiled before Adam's moments have come into being, and what that left is given back.
    step.loss_and_gradients = CachedGraph(step.loss_and_gradients, config, graphs)
    parameters = step.state.space.size
    frozen = sum(each.size for each in step.networks.get_parameters()) - parameters
    print(f"built in {time.perf_counter() - started:.1f} s, {parameters:,} parameters: {memory()}", flush=True)
    batch = make_batch(config, SingleProcess())
    for number in range(1, steps + 1):
        result = step(batch)
        print(f"step {number}: {result.step_seconds:.1f} s, loss {result.loss:.4f}: {memory()}", flush=True)
        if not result.finite:
            sys.exit("the step is not finite")
    needed_bytes = 4 * (ARRAYS * parameters + frozen)
    print(f"needed by the arrays: {needed_bytes / 2**30:.2f} GiB")
    print(f"full_size_step_memory ratio {needed_bytes / resident_bytes('VmHWM'):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model-channels", type=int, default=320, help="width of the UNet; SD2's is 320")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--reserve-gib", type=float, default=1.0, help="end when less is available")
    arguments = parser.parse_args()
    config = recipe(arguments.model_channels)
    stop_before_memory_ends(int(arguments.reserve_gib * 2**30))
    runtime.start_single()
    print(f"before the networks: {memory()}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        train(config, arguments.steps, Path(folder))


if __name__ == "__main__":
    main()
