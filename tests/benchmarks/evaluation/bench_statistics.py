"""Statistics of an evaluation: seconds and peak memory of each metric at the size of a published FID.

    .venv/bin/python tests/benchmarks/evaluation/bench_statistics.py --images 30000 --width 2048

Each metric runs in a process of its own, so that the peaks are its own. The features are seeded and correlated.
"""

import argparse
import multiprocessing
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from vpred_train.evaluation.frechet import (
    MomentSums,
    frechet_distance,
    frechet_distance_of_moments,
    frechet_replicates,
    moments,
)
from vpred_train.evaluation.kernels import kid
from vpred_train.evaluation.neighbours import ball_metrics

BATCH = 64


def features(images: int, width: int, seed: int) -> np.ndarray:
    """Return (images, width) float32, at least 0 as Inception's are, with a covariance of falling eigenvalues."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)
    values = rng.normal(size=(images, 64)).astype(np.float32) @ mix / 8
    return np.maximum(values + rng.normal(size=(images, width)).astype(np.float32) / 4, 0)


def streamed(x: np.ndarray, y: np.ndarray) -> float:
    """Add up both sets batch by batch, as a run does that keeps no features."""
    sums = [MomentSums(x.shape[1]), MomentSums(x.shape[1])]
    for sum_, values in zip(sums, (x, y), strict=True):
        for start in range(0, len(values), BATCH):
            sum_.add(values[start : start + BATCH])
    return frechet_distance_of_moments(sums[0].moments(), sums[1].moments())


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], Any]] = {
    "nothing": lambda x, y: 0.0,
    "moments": lambda x, y: moments(x).covariance.trace(),
    "fid": frechet_distance,
    "fid_streamed": streamed,
    "fid_replicates": lambda x, y: frechet_replicates(x, y).mean(),
    "kid": lambda x, y: kid(x, y)[0],
    "balls": lambda x, y: ball_metrics(x, y).coverage,
}


def measure(name: str, images: int, width: int) -> None:
    """Print a line with the seconds, the peak of the process and the value."""
    x, y = features(images, width, 1), features(images, width, 2)
    start = time.perf_counter()
    value = METRICS[name](x, y)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{name:16}{seconds:9.1f} s {peak:7.2f} GiB   value {value:.8g}", flush=True)


def main() -> None:
    """Measure the chosen metrics one after another."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=30_000)
    parser.add_argument("--width", type=int, default=2048)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS))
    args = parser.parse_args()
    print(f"{args.images} x {args.width} on {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}", flush=True)
    for name in args.metrics:
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(name, args.images, args.width))
        process.start()
        process.join()
        if process.exitcode:
            raise SystemExit(f"{name}: exit code {process.exitcode}")


if __name__ == "__main__":
    main()
