"""The data path in one run: loading, cache, index and the main job's wait for data; each asked ratio beside its target.

    .venv/bin/python tests/benchmarks/data/bench_data.py --torch-python PATH

Runs `bench_data_loading.py`, `bench_data_cache.py` and `bench_data_index.py`, which print medians and take options of
their own, then the demonstration for 200 steps. `--torch-python`: a Python with torch, NumPy and Pillow; without it
there is no such line.
The wait is counted over the steps after the first, which compiles; its ratio is 2 % over the share of their time.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
ALLOWED_WAIT = 0.02
ASKED = {
    "data_torch": 1.2,
    "data_decode": 0.9,
    "data_cache": 0.8,
    "data_index_shards_time": 1.0,
    "data_index_shards_memory": 1.0,
    "data_index_files_time": 1.0,
    "data_index_files_memory": 1.0,
    "data_wait": 1.0,
}
PORT = 23930


def ratios(script: str, *options: str) -> Iterator[tuple[str, float]]:
    """Names and values that a benchmark beside this one prints, which is shown too."""
    argv = [sys.executable, "-P", str(HERE / script), *options]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout
        for line in running.stdout:
            print(line, end="", flush=True)
            name, kind, value = (*line.split(), "", "", "")[:3]
            if kind == "ratio":
                yield name, float(value)
    if running.returncode:
        sys.exit(running.returncode)


def waiting_share() -> float:
    """The part of the demonstration's steps in which rank 0 waits for data."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--run-dir", f"{folder}/run"]
        argv += ["total_samples=3200", "final_samples=0", f"cluster.metrics.base_port={PORT}"]
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line) for line in lines[1:]]
    return float(sum(step["data_wait_seconds"] for step in steps) / sum(step["step_seconds"] for step in steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch-python", type=Path)
    options = parser.parse_args()
    torch = ["--torch-python", str(options.torch_python)] if options.torch_python else []
    found = dict(ratios("bench_data_loading.py", *torch))
    found |= ratios("bench_data_cache.py")
    found |= ratios("bench_data_index.py")
    share = waiting_share()
    print(f"waiting for data: {100 * share:.3f} % of the steps\n")
    found["data_wait"] = ALLOWED_WAIT / share
    for name, asked in ASKED.items():
        if name in found:
            print(f"{name} ratio {found[name]:.2f} (asked {asked})")


if __name__ == "__main__":
    main()
