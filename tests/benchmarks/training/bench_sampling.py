"""Text to images: images per second of ours and of diffusers, on CPU, with the very same weights.

    python3 -m venv OTHER && OTHER/bin/pip install torch==2.13.0 diffusers==0.42.1 transformers==5.23.0 \
        --extra-index-url https://download.pytorch.org/whl/cpu
    .venv/bin/python tests/benchmarks/training/bench_sampling.py --diffusers-python OTHER/bin/python

The model has SD2's structure and is narrow. Both sides draw the same noise, so that their images must agree. They take
turns, and each ratio is of two neighbours in time. First, a process of its own: `vpred-sample` up to one image.
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

import numpy as np

from vpred_train import runtime
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord

PIXELS = 256
THREADS = 2
TOLERANCE = 1e-3  # of images that span 2, after all steps
MODEL = ModelConfig.model_validate(
    {
        "unet": {"model_channels": 64, "head_channels": 32, "context_channels": 128},
        "text_encoder": {"width": 128, "heads": 4, "layers": 4},
        "vae": {"channels": 32},
    }
)
RECORD = ParameterizationRecord(
    weights="raw", samples_seen=0, resolution=PIXELS, diffusion=DiffusionConfig(), model=MODEL
)
SAMPLING: dict[str, Any] = {"sampler": "dpmpp_2m", "steps": 10, "guidance_scale": 7.5}


class Theirs:
    """A process of diffusers that samples on request."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.images = folder.with_name("theirs.npy")
        settings = [PIXELS, SAMPLING["steps"], SAMPLING["guidance_scale"], THREADS]
        worker = Path(__file__).with_name("diffusers_worker.py")
        command = [python, worker, folder, *map(str, settings)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def sample(self, prompts: list[str], seeds: list[int]) -> float:
        """Write the images to `self.images`; the seconds taken."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(
            json.dumps({"prompts": prompts, "seeds": seeds, "images": str(self.images)}),
            file=self.process.stdin,
            flush=True,
        )
        return float(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def seconds_to_first_image(folder: Path) -> float:
    """From the start of `vpred-sample` to its end, with one image written."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in SAMPLING.items()]
    command = [
        "-m",
        "vpred_train.commands.sample",
        "--ckpt",
        folder,
        "--output",
        folder.with_name("images"),
        "--prompt",
        "a",
    ]
    started = time.perf_counter()
    subprocess.run([sys.executable, *command, *options], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def compare(networks: Any, theirs: Theirs, batch: int, pairs: int) -> float:
    """Print the images per second of both; the median of the ratios."""
    from vpred_train.sampling.pipeline import TextToImage

    sampling = SamplingConfig.model_validate(SAMPLING | {"batch_size": batch})
    ours = TextToImage(networks, MODEL, RECORD.diffusion, sampling, PIXELS, PIXELS)
    seeds = list(range(batch))
    prompts = [f"a painting of {seed + 1} cherries" for seed in seeds]
    images = ours.generate(prompts, seeds)  # compiles
    theirs.sample(prompts, seeds)
    difference = float(np.abs(images - np.load(theirs.images)).max())
    print(f"batch {batch}: images span {np.ptp(images):.2f} and differ by at most {difference:.1e}", flush=True)
    if difference > TOLERANCE:
        sys.exit("the two sides do not compute the same images")
    ours_s, theirs_s = [], []
    for _ in range(pairs):
        started = time.perf_counter()
        ours.generate(prompts, seeds)
        ours_s.append(time.perf_counter() - started)
        theirs_s.append(theirs.sample(prompts, seeds))
    ratio = statistics.median(other / own for own, other in zip(ours_s, theirs_s, strict=True))
    for name, seconds in (("ours", ours_s), ("theirs", theirs_s)):
        each = " ".join(f"{batch / each:.3f}" for each in seconds)
        print(f"batch {batch}: {name} {batch / statistics.median(seconds):.3f} images/s ({each})")
    print(f"batch {batch}: ratio {ratio:.3f}", flush=True)
    return ratio


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--diffusers-python", type=Path, required=True, help="interpreter that has diffusers")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--pairs", type=int, default=7)
    arguments = parser.parse_args()
    runtime.start_single()

    from vpred_train.models.networks import Networks
    from vpred_train.models.weights import get_weights
    from vpred_train.weights.layouts.read_write import write_weights

    networks = Networks(MODEL, 0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        write_weights(path, get_weights(networks), "diffusers", RECORD)
        print(f"vpred-sample: first image after {seconds_to_first_image(path):.1f} s", flush=True)
        theirs = Theirs(arguments.diffusers_python, path)
        ratios = [compare(networks, theirs, batch, arguments.pairs) for batch in arguments.batches]
        theirs.close()
    print(f"sampling ratio {statistics.geometric_mean(ratios):.3f}")


if __name__ == "__main__":
    main()
