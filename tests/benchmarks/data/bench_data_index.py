"""How long a data set of a million rows takes to open, and the memory of the process that did.

    .venv/bin/python tests/benchmarks/data/bench_data_index.py [--rows 1000000] [--forms shards files]

Two forms: rows in 1000 shards, and an image file for each row; all files are asked for size and time of change.
They are empty and the index is made up: opening never reads an image. Each figure is of a fresh process that opens the
folder and reads the last row; the memory is all of that process, Python and imports included.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from data.files import INDEX_NAME
from data.sources.columns import string_columns
from data.sources.index_builder import stat_files
from data.sources.index_file import make_index, write_index

CEILING_S = 2.0
CEILING_BYTES = 300e6
SHARDS = 1000
FORMS = ("shards", "files")
REPEATS = 3
OPEN = r"""
import re, sys, time
from pathlib import Path
from data.sources.source import open_source
started = time.perf_counter()
source = open_source(Path(sys.argv[1]))
sample = source.sample(len(source) - 1)
seconds = time.perf_counter() - started
assert sample.text, sample
# Not ru_maxrss: it begins with what the parent had when it forked.
print(seconds, 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]))
"""


def make_folder(folder: Path, rows: int, in_shards: bool) -> None:
    """Empty files, and an index that tells of a row's worth of facts for each."""
    numbers = np.arange(rows)
    files = (
        [f"{n:06d}.tar" for n in range(SHARDS)] if in_shards else ["img_txt.csv", *(f"{n:07d}.jpg" for n in numbers)]
    )
    for name in files:
        (folder / name).touch()
    sizes, times = stat_files(folder, files)
    rng = np.random.default_rng(0)
    columns = {
        "file": (numbers * SHARDS // rows if in_shards else numbers + 1).astype(np.int32),
        "offset": numbers,
        "length": numbers,
        "size": np.full((rows, 2), 512, np.int32),
        "content_hash": rng.integers(0, 256, (rows, 16), np.uint8),
        "file_bytes": sizes,
        "file_mtime_ns": times,
    }
    columns |= string_columns("name", files)
    columns |= string_columns("text", [f"a photo of sixty letters or so, as captions go, number {n}" for n in numbers])
    columns |= string_columns("origin", [f"img_txt.csv:{n + 2}" for n in numbers])
    columns |= string_columns("fault", [""] * rows)
    name, tables = ("webdataset", SHARDS) if in_shards else ("csv", 1)
    write_index(make_index(name, tables, columns), folder / INDEX_NAME)


def measure(folder: Path) -> tuple[float, float]:
    """Seconds and bytes, the medians of fresh processes."""
    runs = []
    for _ in range(REPEATS):
        answer = subprocess.run([sys.executable, "-c", OPEN, str(folder)], capture_output=True, text=True, check=True)
        runs.append([float(each) for each in answer.stdout.split()])
    seconds, nbytes = np.median(runs, axis=0)
    return float(seconds), float(nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS)
    arguments = parser.parse_args()
    rows = arguments.rows
    found = {}
    for form in arguments.forms:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            make_folder(Path(folder), rows, form == "shards")
            made_s = time.perf_counter() - started
            size = (Path(folder) / INDEX_NAME).stat().st_size
            seconds, nbytes = measure(Path(folder))
        found[form] = {"rows": rows, "open_s": seconds, "memory_bytes": nbytes, "index_bytes": size, "made_s": made_s}
    print(json.dumps(found, indent=2))
    for form, figures in found.items():
        print(f"data_index_{form}_time ratio {CEILING_S / figures['open_s']:.2f}")
        print(f"data_index_{form}_memory ratio {CEILING_BYTES / figures['memory_bytes']:.2f}")


if __name__ == "__main__":
    main()
