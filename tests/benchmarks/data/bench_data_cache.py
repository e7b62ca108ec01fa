"""Reading training samples from a cache, in shuffled order and checked, against reading its files from end to end; and
how long a large cache takes to open.

    .venv/bin/python tests/benchmarks/data/bench_data_cache.py [--samples 400] [--rows 1000000]

The first two read the same bytes in one process, in turns, from the page cache: a disk would hide what the loader
costs. The large cache has as many shards as a real one, but entries of four bytes. A fresh process opens it as the
first rank does, which finds all samples and writes where they lie, and one as the others do. Seconds and bytes are
those beyond what the imports take; bytes are the highest resident set.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import xxhash
from bench_data_index import make_folder
from PIL import Image
from safetensors.numpy import save

from data import (
    Cache,
    CacheFetcher,
    CacheSpecs,
    CacheWriter,
    DataConfig,
    Loader,
    Source,
    encoded_keys,
    entry_keys,
    find_entries,
    image_keys,
    make_order,
    one_bucket,
    open_source,
)
from data.cache.shards import FORMAT, KEY, canonical

SIZE = (768, 768)
MOMENTS, FEATURES = (8, 96, 96), (77, 1024)  # SD 2.x at 768 pixels
SPECS = CacheSpecs({"kind": "moments"}, {"kind": "text"})
BATCH = 8
BATCH_BYTES = BATCH * 4 * (8 * 96 * 96 + 77 * 1024)
ROUNDS = 9
CEILING_S, CEILING_BYTES = 3.0, 100e6
PER_SHARD = {"moments": 455, "text": 425}  # of 128 MiB, with their values
LARGE = CacheSpecs(
    {"kind": "moments", "crop": "center", "vae": {"channels": [128, 256, 512, 512], "xxh3": "0" * 32}},
    {"kind": "text", "text_encoder": {"width": 1024, "layers": 23, "heads": 16, "xxh3": "0" * 32}},
)
OPEN = r"""
import json, re, sys, time
from pathlib import Path
from data import Cache, CacheSpecs, find_entries, mapped_entries, one_bucket, open_source, write_entries
folder, cache, file, seal, specs = *map(Path, sys.argv[1:4]), sys.argv[4], CacheSpecs(**json.loads(sys.argv[5]))
def status(name):
    return 1024 * int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
before, started = status("VmRSS"), time.perf_counter()
source = open_source(folder)
buckets = one_bucket((768, 768), len(source))
if seal:
    entries = mapped_entries(file, seal, cache)
else:
    found = find_entries(Cache(cache), source, specs, buckets, mirrored=False, remedy="")
    entries = write_entries(found, file)
seconds = time.perf_counter() - started
assert entries.cache.read(entries.moments[0].item(len(source) - 1)).shape == (1,)
print(entries.seal, seconds, status("VmHWM") - before)
"""


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
        (SPECS.moments_at(SIZE), image_keys(SPECS, source.content_hashes(ids), SIZE, False), MOMENTS),
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


def fill_keys(folder: Path, source: Source) -> None:
    """A cache of a source's samples without its values."""
    folder.mkdir()
    ids = np.arange(len(source))
    moments = image_keys(LARGE, source.content_hashes(ids), SIZE, False)
    texts = np.concatenate([entry_keys(LARGE.text, [""]), encoded_keys(LARGE.text, source.caption_bytes(ids))])
    for spec, keys in ((LARGE.moments_at(SIZE), moments), (LARGE.text, texts)):
        per_shard = PER_SHARD[spec["kind"]]
        for start in range(0, len(keys), per_shard):
            part = keys[start : start + per_shard].astype(KEY)  # NumPy joins to a native order
            values = np.zeros((len(part), 1), np.float32)
            sums = np.full(len(part), xxhash.xxh3_64_intdigest(bytes(4)), np.uint64)
            tensors = {"keys": part.view(np.uint8).reshape(-1, 16), "xxh3": sums, "values": values}
            facts = {"format": FORMAT, "spec": canonical(spec)}
            (folder / f"{spec['kind']}-{start:012d}.safetensors").write_bytes(save(tensors, facts))


def measure_opening(rows: int) -> None:
    """Prints seconds and bytes of the first rank and of another one, and their ratios to the ceilings."""
    with tempfile.TemporaryDirectory() as root:
        images, cache, file = (Path(root) / name for name in ("images", "cache", "entries.safetensors"))
        images.mkdir()
        make_folder(images, rows, in_shards=True)
        fill_keys(cache, open_source(images))
        seal = ""
        for who in ("first", "other"):
            argv = [sys.executable, "-c", OPEN, images, cache, file, seal, json.dumps(vars(LARGE))]
            runs = []
            for _ in range(ROUNDS // 3):
                answer = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=True)
                found, seconds, nbytes = answer.stdout.split()
                runs.append((float(seconds), float(nbytes)))
            seal = found
            seconds_, nbytes_ = np.median(runs, axis=0)
            print(f"{rows} samples opened by the {who} rank: {seconds_:.2f} s, {nbytes_ / 1e6:.1f} MB")
            print(f"data_cache_open_{who}_time ratio {CEILING_S / seconds_:.2f}")
            print(f"data_cache_open_{who}_memory ratio {CEILING_BYTES / nbytes_:.2f}")


def main() -> None:
    """Prints the rates, and what opening takes, with their ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--rows", type=int, default=1_000_000, help="samples of the cache that is opened; 0: none")
    parser.add_argument("--workers", type=int, default=0, help="processes that read; 0: a thread")
    arguments = parser.parse_args()
    if arguments.rows:
        measure_opening(arguments.rows)
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
