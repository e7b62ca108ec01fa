"""Checkpoints against what the same disk and memory do in the same minute, and against others' checkpoints.

    .venv/bin/python tests/benchmarks/checkpoints/bench_checkpoint.py --megabytes 64 1000 --folder /on/the/disk
    (--mindspore: also ms.save_checkpoint; --torch-python OTHER/bin/python: also torch.distributed.checkpoint)

Two ranks under mpirun save a state: a quarter weights, whole on each rank, the rest in shards. Each ratio is of two
neighbours in time, which take turns in who is first, the median over the repeats: above 1 is in our favour. All files
stay until the end, so that each write goes to fresh blocks, as a save does. A plain write is `dd conv=fsync`; an early
one also tells the device to begin with each block. Reads are cold (posix_fadvise), plain ones of a file as large as
what a rank has written, and of the step's own files that it needs. PyTorch has minutes of its own. It takes memory
for 2.5 times the megabytes (with --mindspore 3.5), and disk for four times in each repeat (six).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun

RANKS = 2


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """The median ratio of neighbours."""
    return median([first / second for first, second in zip(above, below, strict=True)])


def ours(folder: Path, megabytes: int, repeats: int, mindspore: bool) -> dict[str, list[float]]:
    mpirun = find_mpirun(None, os.environ)
    worker = Path(__file__).with_name("checkpoint_worker.py")
    argv = [str(mpirun.path), "-np", str(RANKS), *mpirun.dialect.oversubscribe, "--bind-to", "none", sys.executable]
    argv += [str(worker), str(folder), "--megabytes", str(megabytes), "--repeats", str(repeats)]
    argv += ["--world-size", str(RANKS), *["--mindspore"] * mindspore]
    env = os.environ | (ROOT_VARIABLES if os.geteuid() == 0 else {})
    answer = subprocess.run(argv, env=env, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, list[float]] = json.loads(answer.stdout.strip().splitlines()[-1])
    return found


def torch_times(python: Path, folder: Path, megabytes: int, repeats: int) -> dict[str, list[float]]:
    worker = Path(__file__).with_name("torch_checkpoint_worker.py")
    argv = [str(python), str(worker), str(folder), str(megabytes), str(repeats), str(RANKS)]
    answer = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    times: dict[str, list[float]] = json.loads(answer.stdout.strip().splitlines()[-1])
    return times


def report(megabytes: int, found: dict[str, list[float]], theirs: dict[str, list[float]]) -> None:
    print(f"--- {megabytes} MB on {RANKS} ranks")
    for name in (
        "plain_write_s",
        "early_write_s",
        "save_s",
        "background_s",
        "copy_s",
        "stage_s",
        "stall_s",
        "plain_read_s",
        "files_read_s",
        "restore_s",
    ):
        print(f"{name:>14} median {median(found[name]):.3f}")
    own = found["own_bytes"]
    print(f"balance max/mean {max(own) / (sum(own) / len(own)):.3f}")
    print(f"extra memory of a background save: own bytes + {(found['extra_bytes'][0] - own[0]) / 2**20:.0f} MiB")
    print(f"checkpoint_{megabytes}mb_save_vs_plain_write ratio {ratio(found['plain_write_s'], found['save_s']):.2f}")
    print(f"checkpoint_{megabytes}mb_save_vs_early_write ratio {ratio(found['early_write_s'], found['save_s']):.2f}")
    allowed_s = [1.15 * copy_s + 0.02 for copy_s in found["copy_s"]]
    print(f"checkpoint_{megabytes}mb_stage_vs_copy ratio {ratio(found['copy_s'], found['stage_s']):.2f}")
    print(f"checkpoint_{megabytes}mb_stall_vs_allowed ratio {ratio(allowed_s, found['stall_s']):.2f}")
    rates = {
        kind: [size / seconds for size, seconds in zip(found[f"{kind}_bytes"], found[f"{kind}_s"], strict=True)]
        for kind in ("restore", "plain_read", "files_read")
    }
    for kind in ("plain_read", "files_read"):
        print(f"checkpoint_{megabytes}mb_restore_vs_{kind} ratio {ratio(rates['restore'], rates[kind]):.2f}")
    for name in ("mindspore_s", "mindspore_fsync_s"):
        if name in found:
            print(f"checkpoint_{megabytes}mb_save_vs_{name[:-2]} ratio {ratio(found[name], found['save_s']):.2f}")
            print(f"checkpoint_{megabytes}mb_stall_vs_{name[:-2]} ratio {ratio(found[name], found['stall_s']):.2f}")
    for name, times in theirs.items():
        print(f"{name:>14} median {median(times):.3f}")
        print(f"checkpoint_{megabytes}mb_save_vs_{name[:-2]} ratio {median(times) / median(found['save_s']):.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[64, 1000, 4000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on the file system to be measured")
    parser.add_argument("--mindspore", action="store_true")
    parser.add_argument("--torch-python", type=Path)
    options = parser.parse_args()
    for megabytes in options.megabytes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            found = ours(Path(folder), megabytes, options.repeats, options.mindspore)
            python = options.torch_python
            theirs = torch_times(python, Path(folder), megabytes, options.repeats) if python else {}
        report(megabytes, found, theirs)


if __name__ == "__main__":
    main()
