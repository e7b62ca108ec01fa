"""A training step: images per second of ours and of diffusers with PyTorch, on CPU, from the very same weights.

    python3 -m venv OTHER && OTHER/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 \
        --extra-index-url https://download.pytorch.org/whl/cpu
    .venv/bin/python tests/benchmarks/training/bench_training_step.py --diffusers-python OTHER/bin/python [--plain]

A step is forward, backward, AdamW and EMA of a UNet of SD2's structure on one fixed batch. Both sides take turns, and
each ratio is of two neighbours in time; their losses must agree. `--plain`: without the compiled operations.
`--graphs`: take the compiled graph from this folder, as a restart does, or leave it there; MindSpore keeps the memory
in which it compiles.
"""

import argparse
import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.identity import read_identity
from vpred_train import runtime
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord

THREADS = 2
LEARNING_RATE = 1e-4
TOLERANCE = 1e-4  # relative, of the losses over the first steps
TEXT = {"layers": 1, "heads": 1}  # not used: the context is given
SMALL = {
    "unet": {
        "in_channels": 3,
        "model_channels": 32,
        "channel_multipliers": [1, 2, 2],
        "head_channels": 32,
        "context_channels": 64,
    },
    "text_encoder": {"width": 64, **TEXT},
    "vae": {"latent_channels": 3, "channels": 32, "channel_multipliers": [1]},
}
MIDDLE = {
    "unet": {"model_channels": 96, "channel_multipliers": [1, 2, 3, 3], "head_channels": 32},
    "text_encoder": {"width": 1024, **TEXT},
    "vae": {"channels": 32},
}
CASES = {"small": (SMALL, 16), "middle": (MIDDLE, 4)}
SIDE = 32
RECIPE = {
    "total_samples": 16,
    "global_batch": 16,
    "trainable": ["unet", "text_encoder"],
    "model": {"vae": None, "unet": {"in_channels": 3}},
    "data": {"path": ".", "resolution": SIDE},
    "optimizer": {"learning_rate": LEARNING_RATE, "weight_decay": 0},
    "checkpoint": {"every_samples": 16},
}


class Theirs:
    """A process of diffusers that trains on request."""

    def __init__(self, python: Path, folder: Path, batch_file: Path) -> None:
        worker = Path(__file__).with_name("torch_training_worker.py")
        command = [python, worker, folder, batch_file, str(THREADS), str(LEARNING_RATE)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def train(self, steps: int) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(steps, file=self.process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def make_batch(model: ModelConfig, size: int) -> dict[str, np.ndarray]:
    """Latents, noise and levels of one batch, and a context in place of the text."""
    from vpred_train.diffusion.schedule import make_schedule

    rng = np.random.default_rng(0)
    schedule = make_schedule(DiffusionConfig())
    timesteps = rng.integers(0, 1000, size)
    shape = (size, model.unet.in_channels, SIDE, SIDE)
    return {
        "z": rng.standard_normal(shape, np.float32),
        "noise": rng.standard_normal(shape, np.float32),
        "alpha": schedule.alpha[timesteps].reshape(-1, 1, 1, 1),
        "sigma": schedule.sigma[timesteps].reshape(-1, 1, 1, 1),
        "timesteps": timesteps.astype(np.float32),
        "context": rng.standard_normal((size, 77, model.unet.context_channels), np.float32),
    }


class Ours:
    """The trainer's own graph, optimiser and EMA."""

    def __init__(self, networks: Any, config: TrainConfig, batch: dict[str, np.ndarray], graphs: Path | None) -> None:
        from mindspore import Tensor

        from vpred_train.diffusion.parameterization import v_target
        from vpred_train.distributed.flat_space import FlatSpace
        from vpred_train.engine.graph_cache import CachedGraph
        from vpred_train.engine.objective import DiffusionLoss
        from vpred_train.engine.step import LossAndGradients
        from vpred_train.optim.optimizers import OPTIMIZERS

        self.space = FlatSpace(networks, ("unet",))
        self.weights = self.space.flatten()
        self.ema = self.weights.copy()
        self.optimizer = OPTIMIZERS[config.optimizer.name](config.optimizer, self.space.spans, 0, self.space.size)
        self.steps = 0
        graph = LossAndGradients(DiffusionLoss(networks.unet), self.space.parameters)
        self.graph = graph if graphs is None else CachedGraph(graph, config, graphs)
        z_t = batch["alpha"] * batch["z"] + batch["sigma"] * batch["noise"]
        target = v_target(batch["z"], batch["noise"], batch["alpha"], batch["sigma"])
        weight = np.ones(len(z_t), np.float32)
        self.inputs = [Tensor(each) for each in (z_t, target, weight, batch["timesteps"], batch["context"])]

    def train(self, steps: int) -> dict[str, Any]:
        started = time.perf_counter()
        losses = [self.step() for _ in range(steps)]
        return {"seconds": time.perf_counter() - started, "losses": losses}

    def step(self) -> float:
        from vpred_train.distributed.flat_arrays import FlatArrays
        from vpred_train.ema.profiles import average_

        loss, gradients = self.graph(*self.inputs)
        self.steps += 1
        flat = FlatArrays([tensor.asnumpy().reshape(-1) for tensor in gradients])
        self.optimizer.update_(self.weights, flat, self.steps, LEARNING_RATE, 1.0)
        average_(self.ema, self.weights, 0.9999)
        self.space.write(self.weights)
        return float(loss.asnumpy())


def compare(name: str, diffusers_python: Path, pairs: int, steps: int, graphs: Path | None) -> float:
    """Print both sides' figures; the median of the ratios."""
    from vpred_train.models.networks import Networks
    from vpred_train.models.weights import get_weights
    from vpred_train.weights.layouts.read_write import write_weights

    tree, size = CASES[name]
    model = ModelConfig.model_validate(tree)
    config = TrainConfig.model_validate(RECIPE).model_copy(update={"model": model})
    networks = Networks(model, 0)
    batch = make_batch(model, size)
    with tempfile.TemporaryDirectory() as folder:
        path, batch_file = Path(folder) / "model", Path(folder) / "batch.npz"
        record = ParameterizationRecord(
            weights="raw", samples_seen=0, resolution=SIDE, diffusion=DiffusionConfig(), model=model
        )
        write_weights(path, get_weights(networks), "diffusers", record)
        np.savez(batch_file, **batch)
        before_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        ours = Ours(networks, config, batch, graphs and graphs / name)
        theirs = Theirs(diffusers_python, path, batch_file)
        started = time.perf_counter()
        first = ours.train(1)["losses"]
        print(
            f"{name}: {ours.space.size / 1e6:.1f} M parameters, batch {size}; compiled and first step in "
            f"{time.perf_counter() - started:.1f} s",
            flush=True,
        )
        losses = np.array(first + ours.train(4)["losses"]), np.array(theirs.train(5)["losses"])
        difference = float(np.abs(losses[0] / losses[1] - 1).max())
        print(f"{name}: losses of 5 steps from {losses[0][0]:.4f} to {losses[0][-1]:.4f} differ by {difference:.1e}")
        if difference > TOLERANCE:
            sys.exit("the two sides do not train alike")
        ratios, rates = [], []
        for _ in range(pairs):
            own, other = ours.train(steps), theirs.train(steps)
            ratios.append(other["seconds"] / own["seconds"])
            rates.append((size * steps / own["seconds"], size * steps / other["seconds"]))
        own_bytes = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        theirs.close()
    ratio = statistics.median(ratios)
    for side, each in zip(("ours", "theirs"), zip(*rates, strict=True), strict=True):
        print(f"{name}: {side} {statistics.median(each):.2f} images/s ({' '.join(f'{rate:.2f}' for rate in each)})")
    print(
        f"{name}: peak memory ours {own_bytes / 2**20:.0f} MiB (with the cases before, {before_bytes / 2**20:.0f}), "
        f"theirs {other['peak_bytes'] / 2**20:.0f} MiB"
    )
    print(f"training_step_{name} ratio {ratio:.3f}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers-python", type=Path, required=True, help="interpreter that has diffusers")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of each side in turn")
    parser.add_argument("--plain", action="store_true", help="MindSpore's own operations instead of the compiled ones")
    parser.add_argument("--graphs", type=Path, help="folder of compiled graphs (default: compile)")
    arguments = parser.parse_args()
    cpu = dataclasses.replace(ACCELERATORS["cpu"], compiled_operations=not arguments.plain)
    runtime.start(cpu, read_identity({}), 0, None)
    for name in arguments.cases:
        compare(name, arguments.diffusers_python, arguments.pairs, arguments.steps, arguments.graphs)


if __name__ == "__main__":
    main()
