"""What metrics, log, status and history cost a rank of the demonstration in each step, when no checkpoint is due.

    .venv/bin/python tests/benchmarks/training/bench_hooks.py

The hooks are those of a run, with real files and a metrics server that is scraped. The ratio is their seconds for a
step over those of a step of 8 images on one core: the target is 0.01 at most. A scrape of the rank while it computes
shall take 100 ms at most.
"""

import argparse
import logging
import os
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from demo_rank import make_batch, make_rank, make_trainer

from monitoring import configure_logging
from vpred_train.training.rank import MetricsPlace

STEPS = 11
SCRAPE_S = 15.0  # Prometheus' usual interval
SCRAPED_STEPS = 60
SCRAPE_LIMIT_S = 0.1


def hook_seconds(hooks: Any, result: Any, port: int, steps: int) -> float:
    """Per step: all hooks over `steps` steps, made to fall due as often as steps of their duration would."""
    from vpred_train.training.hooks.status import STATUS_INTERVAL_S, StatusHook

    status = next(hook for hook in hooks.hooks if isinstance(hook, StatusHook))
    per_status, per_scrape = (max(1, round(each / result.step_seconds)) for each in (STATUS_INTERVAL_S, SCRAPE_S))
    started = time.perf_counter()
    for number in range(1, steps + 1):
        # Due after its interval, and else not: this loop is faster than the clock.
        status.written_s = 0.0 if number % per_status == 0 else float("inf")
        step = replace(result, step=number, samples_seen=number * 16)
        hooks.on_step(step)
        if number % per_scrape == 0:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
    return (time.perf_counter() - started) / steps


@contextmanager
def scrapes_of(port: int) -> Iterator[list[float]]:
    """Scrape once a second during the block, from a thread; yield the seconds that each took."""
    took_s: list[float] = []
    ended = threading.Event()

    def scrape() -> None:
        while not ended.wait(1.0):
            begun_s = time.perf_counter()
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
                answer.read()
            took_s.append(time.perf_counter() - begun_s)

    thread = threading.Thread(target=scrape)
    thread.start()
    yield took_s
    ended.set()
    thread.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the hooks")
    parser.add_argument("--port", type=int, default=28950)
    steps, port = vars(parser.parse_args()).values()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        rank = replace(make_rank(Path(folder)), metrics_at=MetricsPlace("127.0.0.1", [port]))
        from vpred_train.training.reporting import Reporting
        from vpred_train.training.trainer import Resumed

        with rank.attempt.log(0).open("w") as log:
            os.dup2(log.fileno(), sys.stderr.fileno())  # as the launcher starts a rank
        configure_logging(0, logging.INFO)
        trainer = make_trainer(rank)
        with Reporting(rank) as reporting:
            reporting.begin(Resumed(0), left_out=0)
            results = [trainer.step(make_batch(rank.config, number)) for number in range(STEPS + 1)][1:]
            with scrapes_of(port) as scrapes_s:
                for number in range(SCRAPED_STEPS):
                    reporting.hooks.on_step(trainer.step(make_batch(rank.config, number)))
            step_seconds = statistics.median(result.step_seconds for result in results)
            result = replace(results[-1], step_seconds=step_seconds)
            cost = hook_seconds(reporting.hooks, result, port, steps)
        lines = len(rank.run.metrics_jsonl.read_text().splitlines())
    print(f"step {1000 * step_seconds:.1f} ms; hooks {1e6 * cost:.0f} us a step over {lines} steps")
    print(f"hooks ratio {cost / step_seconds:.5f}")
    scrape_s = statistics.median(scrapes_s)
    longest_ms = 1000 * max(scrapes_s)
    print(f"{len(scrapes_s)} scrapes while it trains: median {1000 * scrape_s:.1f} ms, longest {longest_ms:.1f} ms")
    print(f"busy_scrape ratio {scrape_s / SCRAPE_LIMIT_S:.3f}")


if __name__ == "__main__":
    main()
