"""What metrics, log, status and history cost a rank of the demonstration in each step, when no checkpoint is due.

    .venv/bin/python tests/benchmarks/training/bench_hooks.py

The hooks are those of a run, with real files and a metrics server that is scraped. The ratio is their seconds for a
step over those of a step of 8 images on one core: the target is 0.01 at most.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo_rank import IDENTITY, make_batch, make_trainer, set_up_mindspore

from launcher.contract.run_dir import RunDir
from monitoring import configure_logging

STEPS = 11
SCRAPE_S = 15.0  # Prometheus' usual interval


def hook_seconds(hooks: list[Any], result: Any, port: int, steps: int) -> float:
    """Per step: all hooks over `steps` steps, made to fall due as often as steps of their duration would."""
    from vpred_train.training.hooks.status import STATUS_INTERVAL_S, StatusHook

    status = next(hook for hook in hooks if isinstance(hook, StatusHook))
    per_status, per_scrape = (max(1, round(each / result.step_seconds)) for each in (STATUS_INTERVAL_S, SCRAPE_S))
    started = time.perf_counter()
    for number in range(1, steps + 1):
        # Due after its interval, and else not: this loop is faster than the clock.
        status.written_s = 0.0 if number % per_status == 0 else float("inf")
        step = replace(result, step=number, samples_seen=number * 16)
        for hook in hooks:
            hook.on_step(step)
        if number % per_scrape == 0:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
    return (time.perf_counter() - started) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the hooks")
    parser.add_argument("--port", type=int, default=28950)
    steps, port = vars(parser.parse_args()).values()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    set_up_mindspore()
    from vpred_train.training.run import make_hooks

    with tempfile.TemporaryDirectory() as folder, ExitStack() as resources:
        run = RunDir(Path(folder))
        attempt = run.attempt(1)
        attempt.root.mkdir(parents=True)
        with attempt.log(0).open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())  # as the launcher starts a rank
        configure_logging(0, logging.INFO)
        config, trainer = make_trainer(run)
        served = argparse.Namespace(metrics_port_base=port, metrics_address="127.0.0.1")
        hooks = make_hooks(config, served, IDENTITY, run, attempt, trainer, resources)
        results = [trainer.step(make_batch(config, number)) for number in range(STEPS + 1)][1:]
        step_seconds = statistics.median(result.step_seconds for result in results)
        cost = hook_seconds(hooks, replace(results[-1], step_seconds=step_seconds), port, steps)
        lines = len(run.metrics_jsonl.read_text().splitlines())
    print(f"step {1000 * step_seconds:.1f} ms; hooks {1e6 * cost:.0f} us a step over {lines} steps")
    print(f"hooks ratio {cost / step_seconds:.5f}")


if __name__ == "__main__":
    main()
