"""From the kill of a rank to the restarted first step, by part; the demonstration on two ranks.

    PYTHONPATH=. .venv/bin/python tests/benchmarks/launcher/bench_restart.py

Rank 1 is killed with -9 when a checkpoint is behind it; the launcher starts again and, after the first step of that, is
stopped. The parts are those of attempts/0002/attempt.json (launcher/records/attempt_record.py); what was trained
twice comes on top.
Ratio: seconds from the first attempt's start to its first step, which compiles, over those of the second, which reads
the compiled graph.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from launcher.contract.run_dir import RankStatus, RunDir
from launcher.records.attempt_record import LostTime, read_records

RECIPE = Path(__file__).parents[3] / "vpred_train" / "recipes" / "tiny_emoji.yaml"
CHECKPOINT_STEPS = 10
DEADLINE_S = 400.0
PORT = 23910


def wait_until(condition: Callable[[], bool], launcher: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        if launcher.poll() is not None or time.monotonic() > deadline_s:
            sys.exit(f"the run did not come that far (exit code {launcher.poll()})")
        time.sleep(0.02)


def statuses(run: RunDir, attempt: int) -> list[RankStatus]:
    """Of both ranks, as soon as both tell theirs."""
    found = [RankStatus.read(run.attempt(attempt).status(rank)) for rank in (0, 1)]
    known = [status for status in found if status is not None]
    return known if len(known) == len(found) else []


def trains(run: RunDir, attempt: int) -> bool:
    known = statuses(run, attempt)
    return bool(known) and all("training" in status.phase_unix_s for status in known)


def kill_and_recover(run: RunDir) -> tuple[float, LostTime, LostTime]:
    """Seconds from the kill to the restarted first step, and the parts of both attempts."""
    argv = [sys.executable, "-P", "-m", "launcher.cli", "run", "--recipe", str(RECIPE), "--run-dir", str(run.root)]
    argv += [f"checkpoint.every_samples={16 * CHECKPOINT_STEPS}", f"cluster.metrics.base_port={PORT}"]
    argv += ["cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=0"]
    launcher = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: any(status.checkpoint_step for status in statuses(run, 1)), launcher)
        killed_unix_s = time.time()
        os.kill(statuses(run, 1)[1].pid, signal.SIGKILL)
        wait_until(lambda: trains(run, 2), launcher)
        stepped_unix_s = max(status.phase_unix_s["training"] for status in statuses(run, 2))
    finally:
        launcher.terminate()
        launcher.wait(timeout=DEADLINE_S)
    first, second = read_records(run)
    return stepped_unix_s - killed_unix_s, first.lost, second.lost


def to_first_step_s(lost: LostTime) -> float:
    return lost.start_s + lost.load_s + lost.compile_s


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds, first, second = kill_and_recover(RunDir(Path(folder) / "run"))
    print(f"killed until the restarted first step: {seconds:.2f} s, and {second.rollback_s:.2f} s trained again")
    for part in ("detection", "delay", "start", "load", "compile"):
        print(f"  {part}: {getattr(second, f'{part}_s'):.2f} s (first attempt {getattr(first, f'{part}_s'):.2f} s)")
    print(f"restart_first_step ratio {to_first_step_s(first) / to_first_step_s(second):.2f}")


if __name__ == "__main__":
    main()
