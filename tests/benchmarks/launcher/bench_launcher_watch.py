"""What watching costs: CPU and memory of the launcher while ranks only tell that they live and make steps.

    .venv/bin/python tests/benchmarks/launcher/bench_launcher_watch.py

One process stands for mpirun and all its ranks: it writes each rank's status once a second, as trainers do, with a new
step each time. `supervise` runs in a process of its own and looks as in any run. Ratios: allowed CPU / measured.
"""

import argparse
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import threading
import time
from operator import itemgetter
from pathlib import Path

from launcher.cluster.supervision import SupervisionSettings
from launcher.contract.run_dir import RankStatus, RunDir
from launcher.planning.plan import LaunchPlan, RankPlace
from launcher.records.event_log import EventLog
from launcher.supervision.progress import LineProgress
from launcher.supervision.stop_requests import stop_requests
from launcher.supervision.supervise import supervise

ALLOWED_CPU_RATIO = {2: 0.01, 512: 0.05}  # of one core
WARM_UP_S = 5.0


def beat(run_dir: str, ranks: int) -> None:
    """Every rank's status once a second until killed."""
    attempt = RunDir(Path(run_dir)).attempt(1)
    for step in range(1, 1 << 30):
        started_s = time.monotonic()
        for rank in range(ranks):
            RankStatus(
                rank=rank,
                hostname=f"n{rank // 8}",
                pid=1,
                phase="training",
                step=step,
                total_steps=1 << 30,
                samples_seen=step,
                loss=0.1,
                images_per_second=10.0,
                timed_steps=step,
                own_seconds=0.5 * step,
                updated_unix_s=time.time(),
            ).write(attempt.status(rank))
        time.sleep(max(0.0, 1.0 - (time.monotonic() - started_s)))


def watch(ranks: int, seconds: float, answer: "multiprocessing.Queue[dict[str, float]]") -> None:
    """Supervise for a while; answers CPU seconds per second, the largest resident MiB, new statuses per second."""
    figures = {}

    def told() -> int:
        status = RankStatus.read(RunDir(plan.run_dir).attempt(1).status(ranks - 1))
        return 0 if status is None else status.step

    def measure() -> None:
        time.sleep(WARM_UP_S)
        before, step, started_s = time.process_time(), told(), time.monotonic()
        time.sleep(seconds)
        elapsed_s = time.monotonic() - started_s
        figures["cpu"] = (time.process_time() - before) / elapsed_s
        figures["statuses"] = ranks * (told() - step) / elapsed_s
        figures["mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        for _ in range(3):  # at once
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)

    with tempfile.TemporaryDirectory() as folder, Path(os.devnull).open("w") as nowhere, stop_requests() as stop:
        plan = LaunchPlan(
            run_dir=Path(folder),
            attempt=1,
            accelerator="cpu",
            starter="mpirun",
            init="mpi",
            binding="none",
            ports={},
            ranks=tuple(
                RankPlace(rank=rank, host=f"n{rank // 8}", local_rank=rank % 8, device_id=None, metrics="")
                for rank in range(ranks)
            ),
            forwarded=(),
            argv=(sys.executable, "-P", __file__, "--beat", folder, "--ranks", str(ranks)),
            environment={},
            files={},
            stop_grace_s=1.0,
            supervision=SupervisionSettings(),
        )
        threading.Thread(target=measure, daemon=True).start()
        events = EventLog(RunDir(Path(folder)).events_jsonl)
        supervise(plan, {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}, LineProgress(nowhere), stop, events)
    answer.put(figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="to watch for")
    parser.add_argument("--beat", help=argparse.SUPPRESS)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 512])
    options = parser.parse_args()
    if options.beat:
        beat(options.beat, options.ranks[0])
        return
    context = multiprocessing.get_context("spawn")
    found = {}
    for ranks in options.ranks:
        answer = context.Queue()
        process = context.Process(target=watch, args=(ranks, options.seconds, answer))
        process.start()
        cpu, mib, statuses = found[ranks] = itemgetter("cpu", "mib", "statuses")(
            answer.get(timeout=120 + options.seconds)
        )
        process.join()
        print(f"{ranks} ranks, {statuses:.0f} new statuses/s: {100 * cpu:.2f} % of a core, {mib:.0f} MiB")
    for ranks, (cpu, *_) in found.items():
        print(f"launcher_watch_{ranks} ratio {ALLOWED_CPU_RATIO.get(ranks, 0.05) / cpu:.2f}")


if __name__ == "__main__":
    main()
