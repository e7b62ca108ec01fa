"""What vpred-launch adds to a start: until two ranks tell their first phase, against bare mpirun of the same program.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/launcher/bench_launch_overhead.py

Ours: reading both files, the trainer's check, preflight, plan and files, then mpirun with a shim per rank.
"""

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.run_dir import RunDir
from launcher.planning.mpirun import ROOT_VARIABLES, find_mpirun

PROGRAMS = Path(__file__).resolve().parents[2] / "support" / "programs"
ROUNDS = 5
RANKS = 2
PORT = 23900


def seconds_to_first_line(argv: Sequence[str], run: RunDir) -> float:
    """From the start of `argv` until every rank's first status record is there; the job is then ended."""
    files = [run.attempt(1).status(rank) for rank in range(RANKS)]
    env = os.environ | ROOT_VARIABLES
    begin_s = time.monotonic()
    job = subprocess.Popen(argv, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    while not all(file.exists() for file in files):
        if job.poll() is not None or time.monotonic() - begin_s > 60:
            raise RuntimeError(f"{argv} did not start its ranks (exit code {job.poll()})")
        time.sleep(0.005)
    seconds = time.monotonic() - begin_s
    job.send_signal(signal.SIGUSR1 if argv[0].endswith("mpirun") else signal.SIGTERM)
    job.wait(timeout=60)
    return seconds


def main() -> None:
    mpirun = find_mpirun(None, os.environ)
    bare = [str(mpirun.path), "-np", str(RANKS), *mpirun.dialect.oversubscribe, "--bind-to", "none"]
    bare += ["--mca", "pml", "ob1", "--mca", "btl", f"self,{mpirun.dialect.shared_memory}"]
    trainer = [sys.executable, "-P", str(PROGRAMS / "fake_trainer.py")]
    seconds: dict[str, list[float]] = {"bare": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "demo.yaml"
        recipe.write_text("steps: 100000\nstep_s: 0.01\n")
        check = [*trainer, "--check", "--print-config", "--recipe", str(recipe)]
        resolved = subprocess.run(check, stdout=subprocess.PIPE, text=True, check=True).stdout
        for number in range(ROUNDS):
            alone = RunDir(Path(folder) / f"bare{number}")
            alone.attempt(1).root.mkdir(parents=True)
            alone.train_yaml.write_text(resolved)
            program = [*trainer, "--attempt", "1", "--run-dir", str(alone.root)]
            seconds["bare"].append(seconds_to_first_line([*bare, *program], alone))
            run = RunDir(Path(folder) / f"ours{number}")
            ours = [sys.executable, "-P", str(PROGRAMS / "fake_launch.py"), "run", f"cluster.metrics.base_port={PORT}"]
            ours += ["--recipe", str(recipe), "--run-dir", str(run.root)]
            seconds["ours"].append(seconds_to_first_line(ours, run))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s until the first line of {RANKS} ranks (median of {ROUNDS})")
    print(f"launch_overhead ratio {medians['ours'] / medians['bare']:.2f}")


if __name__ == "__main__":
    main()
