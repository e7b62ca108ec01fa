"""A step of the device engine against the host engine's on CPU: compilation, bytes, launches, time; a model for SD2.

    .venv/bin/python tests/benchmarks/training/bench_device_step.py [--steps 10]

A UNet and a text tower of SD2's depth, a tenth as wide, with 702 tensors, AdamW and two averages. Every part runs in a
process of its own. Ratios:

    device_compile     CPU seconds to compile the whole step / to compile loss and gradients alone; at most 1.3
    device_to_host     bytes that a step copies to the host, device engine / host engine
    device_launches    graphs that a step launches, device engine / host engine
    device_step_time   median seconds of a step, device engine / host engine, on CPU; they take turns

The model counts what one rank moves in a step of SD2's UNet: over PCIe, and between devices. It measures nothing.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import numpy as np

from data import Batch
from vpred_train import runtime
from vpred_train.config.train import TrainConfig

SIDE, BATCH = 16, 4
MODEL = {
    "vae": None,
    "space_to_depth": 2,
    "unet": {"in_channels": 12, "model_channels": 32, "head_channels": 16, "context_channels": 32, "norm_groups": 8},
    "text_encoder": {"width": 32, "heads": 2, "layers": 1, "context_length": 16},
}
DOCUMENT = {
    "total_samples": 4096,
    "global_batch": BATCH,
    "trainable": ["unet", "text_encoder"],
    "data": {"path": ".", "resolution": SIDE},
    "model": MODEL,
    "optimizer": {"learning_rate": 1e-4},
    "ema": {"profiles": ["power"]},
    "checkpoint": {"every_samples": 4096},
}
MOST_COMPILATION = 1.3
SD2_PARAMETERS = 865_910_724
SD2_BATCH_BYTES = 8 * (3 * 4 * 64 * 64 + 77 * 1024) * 4  # z_t, target and text features of 8 images at 512 pixels
FLOAT32_BYTES = 4


def make_step(engine: str) -> Any:
    """A step on one rank; each engine's begins from equal weights."""
    from launcher.contract.accelerators import ACCELERATORS
    from vpred_train.distributed.collectives import SingleProcess
    from vpred_train.engine.engines import ENGINES
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.engine.progress import Progress
    from vpred_train.models.networks import Networks

    config = TrainConfig.model_validate(DOCUMENT)
    networks = Networks(config.model, config.seed)
    inputs = OnlineInputs(config.model, config.data, config.seed, networks)
    made = ENGINES[engine](config, networks, SingleProcess(), ACCELERATORS["cpu"], Progress.fresh(config), inputs, None)
    return made[1]


def batch_of(number: int) -> Batch:
    rng = np.random.default_rng(number)
    return Batch(
        arrays={"images": rng.uniform(-1, 1, (BATCH, 3, SIDE, SIDE)).astype(np.float32)},
        captions=tuple(f"caption {index}" for index in range(BATCH)),
        epochs=np.full(BATCH, number),
        sample_ids=np.arange(BATCH),
        places=np.arange(BATCH),
        samples_seen=(number + 1) * BATCH,
        wait_s=0.0,
    )


def compiled(engine: str) -> dict[str, Any]:
    """CPU seconds to compile the graph of a step: loss and gradients on the host engine, all of it on the device's."""
    from vpred_train.host_copies import to_device

    step = make_step(engine)
    arguments = arguments_of(step)
    if engine == "device":
        step.state.progress.samples_seen = BATCH
        arguments += (to_device(step.numbers(1e-4)),)
    graph = step.loss_and_gradients if engine == "host" else step.graphs[0]
    started_s = time.process_time()
    graph.compile(*arguments)
    return {"cpu_s": time.process_time() - started_s, "tensors": len(step.state.space.spans)}


def arguments_of(step: Any) -> Any:
    z_0, text = step.inputs.of_batch(batch_of(0))
    return step.objective.network_inputs(z_0, step.objective.draw(batch_of(0), z_0.shape[1:]), text)


def compared(steps: int) -> dict[str, Any]:
    """Seconds, bytes and launches of each engine's steps, which take turns; and how far their losses differ."""
    from mindspore.graph import api

    from vpred_train.host_copies import Copied, copied

    launches = 0
    run = api._CellGraphExecutor.run

    def counted(*arguments: Any, **keywords: Any) -> Any:
        nonlocal launches
        launches += 1
        return run(*arguments, **keywords)

    api._CellGraphExecutor.run = counted
    engines = {name: make_step(name) for name in ("host", "device")}
    found: dict[str, dict[str, Any]] = {name: {"seconds": [], "losses": []} for name in engines}
    for number in range(steps + 1):  # the first compiles
        for name, step in engines.items():
            vars(copied).update(vars(Copied()))
            launches, started_s = 0, time.perf_counter()
            result = step(batch_of(number))
            found[name]["seconds"].append(time.perf_counter() - started_s)
            found[name]["losses"].append(result.loss)
            found[name] |= {"launches": launches, **vars(copied)}
    losses = [np.array(each["losses"]) for each in found.values()]
    return {
        **{name: {**each, "seconds": statistics.median(each["seconds"][1:])} for name, each in found.items()},
        "loss_difference": float(np.abs(losses[1] / losses[0] - 1).max()),
    }


def model(ranks: int) -> dict[str, float]:
    """What one rank moves in a step of SD2's UNet, in bytes, and the graphs that it launches.

    Host engine over device collectives: gradients down; each piece up and its sum down; each rank's weights up, and all
    gathered ones down; weights up. Sums and gathers send (ranks - 1) / ranks of the parameters each.
    """
    from vpred_train.distributed.device_collective import PIECES

    size_bytes = FLOAT32_BYTES * SD2_PARAMETERS
    pieces = -(-SD2_PARAMETERS // PIECES[-1])
    report_bytes = 8 * ranks + 8
    return {
        "host_pcie_bytes": size_bytes * (4 + 2 / ranks) + SD2_BATCH_BYTES,
        "device_pcie_bytes": SD2_BATCH_BYTES + report_bytes,
        "network_bytes": 2 * size_bytes * (ranks - 1) / ranks,
        "host_launches": 1 + 2 * pieces,
        "device_launches": 1,
    }


def in_process(*arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, __file__, "--part", *arguments], stdout=subprocess.PIPE, text=True, check=True, timeout=1800
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10, help="steps of each engine that are timed (10)")
    parser.add_argument("--part", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        runtime.start_single()
        what, *rest = arguments.part
        print(json.dumps(compiled(*rest) if what == "compile" else compared(int(*rest))))
        return
    alone, whole = in_process("compile", "host"), in_process("compile", "device")
    found = in_process("compare", str(arguments.steps))
    host, device = found["host"], found["device"]
    print(
        f"{whole['tensors']} tensors; compiled in {whole['cpu_s']:.1f} CPU s, loss and gradients {alone['cpu_s']:.1f}"
    )
    for name, each in (("host", host), ("device", device)):
        print(
            f"{name} engine: {each['seconds']:.3f} s a step, {each['launches']} graphs launched, "
            f"{each['to_host_bytes']} bytes to the host, {each['to_device_bytes']} to the device"
        )
    print(f"losses differ by at most {found['loss_difference']:.1e} relative")
    for ranks in (8, 64, 512):
        each = model(ranks)
        print(
            f"SD2's UNet on {ranks} ranks, of each: PCIe {each['host_pcie_bytes'] / 1e9:.2f} GB and "
            f"{each['host_launches']} graphs on the host engine, {each['device_pcie_bytes'] / 1e6:.2f} MB and "
            f"{each['device_launches']} on the device engine; {each['network_bytes'] / 1e9:.2f} GB between devices"
        )
    print(f"device_compile ratio {whole['cpu_s'] / alone['cpu_s']:.3g} (at most {MOST_COMPILATION})")
    print(f"device_to_host ratio {device['to_host_bytes'] / host['to_host_bytes']:.3g}")
    print(f"device_launches ratio {device['launches'] / host['launches']:.3g}")
    print(f"device_step_time ratio {device['seconds'] / host['seconds']:.3g}")


if __name__ == "__main__":
    main()
