"""The start of a rank of the demonstration: import, building, first step; with and without the cached training graph.

    .venv/bin/python tests/benchmarks/training/bench_start.py

Each start is a process of its own. In turns one compiles and leaves its graph, and the next one reads it; their losses
must be the same bits. Each ratio is seconds without / seconds with the cache, the median of neighbours in time.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from demo_rank import make_batch, make_trainer, set_up_mindspore

from launcher.contract.run_dir import RunDir

STEPS_AFTER = 5
PHASES = ("import", "build", "first_step", "total")


def start(run: RunDir, started_unix_s: float) -> dict[str, Any]:
    """Be one start: seconds of each phase, and the losses."""
    set_up_mindspore()
    imported = time.time()
    from vpred_train.engine.graph_cache import CachedGraph

    config, trainer = make_trainer(run)
    trainer.step.loss_and_gradients = CachedGraph(trainer.step.loss_and_gradients, config, run.graphs(0))
    ready = time.time()
    first = trainer.step(make_batch(config, 0))
    stepped = time.time()
    later = [trainer.step(make_batch(config, number)) for number in range(1, STEPS_AFTER + 1)]
    return {
        "import": imported - started_unix_s,
        "build": ready - imported,
        "first_step": stepped - ready,
        "total": stepped - started_unix_s,
        "step": statistics.median(result.step_seconds for result in later),
        "losses": [result.loss for result in (first, *later)],
    }


def measured(folder: Path) -> dict[str, Any]:
    """One start in a process of its own, whose run directory is `folder`."""
    command = [sys.executable, __file__, "--be", folder, str(time.time())]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(pairs: int) -> None:
    """Print the figures of both kinds of start and their ratios."""
    found: dict[str, list[dict[str, Any]]] = {"compiling": [], "cached": []}
    for _ in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            for starts in found.values():
                starts.append(measured(Path(folder)))
                print(json.dumps(starts[-1]), flush=True)
    if len({json.dumps(each["losses"]) for starts in found.values() for each in starts}) != 1:
        sys.exit("the starts do not train alike")
    for kind, starts in found.items():
        figures = ", ".join(f"{name} {statistics.median(each[name] for each in starts):.2f} s" for name in PHASES)
        print(f"{kind}: {figures}; a later step {statistics.median(each['step'] for each in starts):.2f} s")
    for name in PHASES:
        ratios = [one[name] / other[name] for one, other in zip(*found.values(), strict=True)]
        print(f"start_{name} ratio {statistics.median(ratios):.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--be", nargs=2, metavar=("RUN", "TIME"), help="one start, begun then (used by this script)")
    arguments = parser.parse_args()
    if arguments.be:
        print(json.dumps(start(RunDir(Path(arguments.be[0])), float(arguments.be[1]))))
    else:
        compare(arguments.pairs)


if __name__ == "__main__":
    main()
