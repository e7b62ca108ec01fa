"""Images per second of decode, resize to 512 and normalise: our loader against torch's, and against bare decoding.

    .venv/bin/python tests/benchmarks/data/bench_data_loading.py --torch-python PATH

`--torch-python`: a Python with torch, NumPy and Pillow. The other side is a DataLoader of as many workers whose
dataset runs the transform of `data/images/transforms.py` step for step with Pillow (the same draft, the same Lanczos
resize of the same box) and returns float32. The ceiling: as many processes that decode the same files whole, and do no
more; to compare, the same with the drafts that the loader takes. All alternate, `--rounds` times, each over all
images; the ratios are of medians. The files are made here: JPEG of quality 90 with detail at all scales down to four
pixels (about 2.8 bits per pixel, as photographs have), in the sizes of `--sizes`.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from data import DataConfig, ImageFetcher, Loader, make_order, open_source
from data.images.decode import decode

RESOLUTION = 512
BATCH = 8
DISTINCT = 16  # the others are copies
FINEST_PX = 4
TORCH_WORKER = Path(__file__).with_name("torch_data_worker.py")


def make_images(folder: Path, count: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Noise of equal power in each octave, as photographs have it, and the table of MindONE's layout."""
    rng = np.random.default_rng(0)
    lines = ["dir,text"]
    for number in range(count):
        lines.append(f"{number}.jpg,picture {number}")
        if number >= DISTINCT:
            shutil.copy(folder / f"{number % DISTINCT}.jpg", folder / f"{number}.jpg")
            continue
        width, height = sizes[number % len(sizes)]
        total = np.zeros((height, width, 3), np.float32)
        for octave in range(2, round(math.log2(width / FINEST_PX)) + 1):
            small = rng.normal(0, 24, (2**octave, 2**octave, 3)).clip(-127, 127) + 128
            layer = Image.fromarray(small.astype(np.uint8)).resize((width, height), Image.Resampling.BICUBIC)
            total += np.asarray(layer, np.float32) - 128
        Image.fromarray((total + 128).clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)
    (folder / "a.csv").write_text("\n".join(lines) + "\n")


def decode_whole(path: Path) -> None:
    """The ceiling's work on one file."""
    with Image.open(path) as image:
        image.load()


def decode_draft(path: Path) -> None:
    """The least that the loader can do for one file."""
    decode(path.read_bytes(), at_least=(RESOLUTION, RESOLUTION))


def our_seconds(folder: Path, count: int, workers: int) -> float:
    """Of one pass, without the start of the workers."""
    source = open_source(folder)
    config = DataConfig(path=folder, resolution=RESOLUTION, crop="random", horizontal_flip=True, workers=workers)
    order, fetcher = make_order(source, config, 0, BATCH), ImageFetcher(source, config, 0)
    with Loader(source, fetcher, config, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        ahead = config.prefetch_batches + 3  # what the start has made ahead does not count
        for _ in range(ahead):
            next(loader)
        started = time.perf_counter()
        for _ in range(count // BATCH):
            next(loader)
        return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sizes", default="1024x768,1600x1200,2048x1536,4000x3000", help="width x height, in turn")
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory() as name, get_context("spawn").Pool(options.workers) as pool:
        folder, count = Path(name), options.images
        make_images(folder, count, sizes)
        files = sorted(folder.glob("*.jpg"))

        def ceiling(work: Callable[[Path], None]) -> float:
            started = time.perf_counter()
            pool.map(work, files, chunksize=4)
            return time.perf_counter() - started

        def torch() -> float:
            argv = [str(options.torch_python), str(TORCH_WORKER), str(folder)]
            argv += [str(each) for each in (options.workers, BATCH, RESOLUTION)]
            done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
            return float(json.loads(done.stdout.splitlines()[-1]))

        sides: dict[str, Callable[[], float]] = {"ours": lambda: our_seconds(folder, count, options.workers)}
        sides |= {"ceiling": lambda: ceiling(decode_whole), "drafts": lambda: ceiling(decode_draft)}
        sides |= {"torch": torch} if options.torch_python else {}
        ceiling(decode_whole)  # reads the files into memory
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for _ in range(options.rounds):
            for side, measure in sides.items():
                rates[side].append(count / measure())
    medians = {side: statistics.median(values) for side, values in rates.items()}
    for side, values in rates.items():
        print(f"{side:8} {medians[side]:7.1f} images/s ({min(values):.1f} to {max(values):.1f})")
    if "torch" in medians:
        print(f"data_torch ratio {medians['ours'] / medians['torch']:.3f}")
    print(f"data_decode ratio {medians['ours'] / medians['ceiling']:.3f}")
    print(f"data_draft ratio {medians['ours'] / medians['drafts']:.3f}")


if __name__ == "__main__":
    main()
