"""The demonstration's training step in worlds of one and two ranks: images per second, and what the collectives cost.

    .venv/bin/python tests/benchmarks/training/bench_scaling.py [--zero-stage 0]

Network, optimiser and averages of tiny_emoji.yaml on images of noise, with the loop's vote on stopping. Three worlds
take turns, and each ratio is of neighbours in time:
  one      1 rank on 1 core, batch 8
  two      2 ranks on 1 core each, batch 8 per rank (weak scaling: the criterion), so a global batch of 16
  threads  1 rank with 2 threads on 2 cores, batch 16 (the same global batch in one process)
The collectives' share is measured in turns of its own: a barrier before each takes the wait for the slower rank off.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ranks import Rank, Ranks, as_rank
from training_job import make_batch, make_step

from vpred_train.distributed.collectives import Collective
from vpred_train.prepare.recipe import load_recipe

RECIPE = Path(__file__).parents[3] / "vpred_train" / "recipes" / "tiny_emoji.yaml"
BATCH = 8  # per rank
WORLDS = {"one": (1, 1, BATCH), "two": (2, 1, 2 * BATCH), "threads": (1, 2, 2 * BATCH)}  # ranks, cores each, batch
WARM_UP_STEPS = 3


class Stopwatch:
    """A collective that, while `apart`, meets at a barrier before each operation, and times the two separately."""

    def __init__(self, collective: Collective) -> None:
        self.collective = collective
        self.rank, self.world_size = collective.rank, collective.world_size
        self.waits = collective.waits
        self.reset(apart=False)

    def reset(self, apart: bool) -> None:
        self.apart, self.wait_s, self.transfers_s = apart, 0.0, dict[str, float]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        operation = getattr(self.collective, name)

        def timed(*arguments: Any) -> Any:
            if not self.apart:
                return operation(*arguments)
            started = time.perf_counter()
            self.collective.barrier()
            met = time.perf_counter()
            answer = operation(*arguments)
            self.wait_s += met - started
            self.transfers_s[name] = self.transfers_s.get(name, 0.0) + time.perf_counter() - met
            return answer

        return timed


def serve(rank: Rank, global_batch: str, zero_stage: str) -> None:
    """Train on request: (steps, whether to time the collectives apart) -> seconds and what they are made of."""
    config = load_recipe(RECIPE, [f"global_batch={global_batch}", f"zero_stage={zero_stage}"])
    watch = Stopwatch(rank.collective)
    step, batch = make_step(config, watch), make_batch(config, watch)
    for _ in range(WARM_UP_STEPS):
        step(batch)
    for steps, apart in rank.requests():
        watch.reset(apart)
        rank.collective.barrier()
        started = time.perf_counter()
        for _ in range(steps):
            step(batch)
            watch.any(False)
        rank.collective.barrier()
        seconds = time.perf_counter() - started
        rank.answer({"seconds": seconds, "wait": watch.wait_s, "transfers": watch.transfers_s})


def report(rates: dict[str, list[float]], apart: list[dict[str, Any]], steps: int) -> None:
    """Print each world's images per second, the shares of a step of two ranks, and the ratios."""
    for name, each in rates.items():
        print(f"{name}: {statistics.median(each):.2f} images/s ({' '.join(f'{rate:.2f}' for rate in each)})")
    milliseconds = {
        name: 1e3 / steps * statistics.median(turn["transfers"][name] for turn in apart)
        for name in apart[0]["transfers"]
    }
    wait = statistics.median(turn["wait"] / turn["seconds"] for turn in apart)
    transfer = statistics.median(sum(turn["transfers"].values()) / turn["seconds"] for turn in apart)
    print(f"two: ms in each step, {', '.join(f'{name} {each:.2f}' for name, each in milliseconds.items())}")
    print(f"two: share of a step, collectives {transfer:.1%}, waiting for the other rank before them {wait:.1%}")

    def ratio(own: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(rates[own], rates[other], strict=True))

    print(f"scaling_two_ranks ratio {ratio('two', 'one'):.3f}")
    print(f"scaling_ranks_to_threads ratio {ratio('two', 'threads'):.3f}")
    print(f"scaling_collective_share ratio {transfer:.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--steps", type=int, default=10, help="of each world in turn")
    parser.add_argument("--zero-stage", choices=["0", "1"], default="1", help="the recipe's default is 1")
    arguments = parser.parse_args()
    rates: dict[str, list[float]] = {name: [] for name in WORLDS}
    apart = []
    worlds: dict[str, Ranks] = {}
    try:
        for name, (count, cores, batch) in WORLDS.items():
            worlds[name] = Ranks(__file__, count, cores, str(batch), arguments.zero_stage)
        for _ in range(arguments.pairs):
            for name, (_, _, batch) in WORLDS.items():
                seconds = worlds[name].ask((arguments.steps, False))["seconds"]
                rates[name].append(batch * arguments.steps / seconds)
            apart.append(worlds["two"].ask((arguments.steps, True)))
    finally:
        for world in worlds.values():
            world.close()
    report(rates, apart, arguments.steps)


if __name__ == "__main__":
    joined = as_rank()
    if joined is None:
        main()
    else:
        serve(joined[0], *joined[1])
