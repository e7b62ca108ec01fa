"""Reading training samples from a cache, in shuffled order and checked, against reading its files from end to end.

Both read the same bytes in one process, in turns, from the page cache: a disk would hide what the loader costs.

    python tests/benchmarks/data_cache.py --samples 400
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image

from data import (
    Cache,
    CacheFetcher,
    CacheSpecs,
    CacheWriter,
    DataConfig,
    Loader,
    Source,
    entry_keys,
    find_entries,
    make_order,
    moments_keys,
    one_bucket,
    open_source,
)

SIZE = (768, 768)
MOMENTS, FEATURES = (8, 96, 96), (77, 1024)  # SD 2.x at 768 pixels
SPECS = CacheSpecs({"kind": "moments"}, {"kind": "text"})
BATCH = 8
BATCH_BYTES = BATCH * 4 * (8 * 96 * 96 + 77 * 1024)
ROUNDS = 9


def make_source(folder: Path, count: int) -> Source:
    """So many small images, each with a caption of its own; what they show does not matter here."""
    folder.mkdir()
    rows = ["dir,text"]
    for number in range(count):
        Image.new("RGB", (4, 4), (number % 256, number // 256, 0)).save(folder / f"{number}.png")
        rows.append(f"{number}.png,caption {number}")
    (folder / "img_txt.csv").write_text("\n".join(rows) + "\n")
    return open_source(folder)


def fill(folder: Path, source: Source) -> None:
    """Random entries of the real sizes."""
    rng = np.random.default_rng(0)
    ids = np.arange(len(source))
    texts = ["", *(source.sample(number).text for number in range(len(source)))]
    sets = (
        (SPECS.moments_at(SIZE), moments_keys(SPECS, source, ids, one_bucket(SIZE, len(source)), False), MOMENTS),
        (SPECS.text, entry_keys(SPECS.text, texts), FEATURES),
    )
    for spec, keys, shape in sets:
        with CacheWriter(folder, spec) as writer:
            for key in keys:
                writer.add(key, rng.standard_normal(shape, np.float32))


def loaded_bytes_per_second(source: Source, fetcher: CacheFetcher, config: DataConfig) -> float:
    """One epoch through the loader, as a run has it."""
    order = make_order(source, config, 0, BATCH)
    steps = len(source) // BATCH
    with Loader(source, fetcher, config, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        started = time.perf_counter()
        nbytes = sum(array.nbytes for _ in range(steps) for array in next(loader).arrays.values())
        return nbytes / (time.perf_counter() - started)


def sequential_bytes_per_second(cache: Cache) -> float:
    """Every shard from its beginning to its end, as many bytes at a time as a batch has, into new memory as a batch is:
    here that costs more than the reading."""
    nbytes, started = 0, time.perf_counter()
    for shard in cache.shards:
        with shard.path.open("rb", buffering=0) as file:
            while piece := file.read(BATCH_BYTES):
                nbytes += len(piece)
    return nbytes / (time.perf_counter() - started)


def main() -> None:
    """Prints both rates and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0: a thread")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        source = make_source(Path(root) / "images", arguments.samples)
        fill(Path(root) / "cache", source)
        cache = Cache(Path(root) / "cache")
        config = DataConfig(path=Path(root), resolution=768, caption_drop=0, workers=arguments.workers)
        fetcher = CacheFetcher(
            find_entries(cache, source, SPECS, one_bucket(SIZE, len(source)), mirrored=False, remedy=""), config, 0
        )
        pairs = [
            (loaded_bytes_per_second(source, fetcher, config), sequential_bytes_per_second(cache))
            for _ in range(ROUNDS)
        ]
    ours, theirs = (median(side) for side in zip(*pairs, strict=True))
    print(f"cache through the loader: {ours / 1e9:.2f} GB/s, {ours * BATCH / BATCH_BYTES:.0f} samples/s")
    print(f"the same files from end to end: {theirs / 1e9:.2f} GB/s")
    print(f"data_cache ratio {median(one / other for one, other in pairs):.2f}")


if __name__ == "__main__":
    main()
