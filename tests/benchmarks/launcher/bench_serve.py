"""CPU that `vpred-launch serve` takes for a run whose ranks all report once a second, watched by several browsers.

    PYTHONPATH=.:tests .venv/bin/python tests/benchmarks/launcher/bench_serve.py [--ranks 512] [--seconds 60]

Each viewer asks for state.json every 2 s, and Prometheus for /metrics and /sd every 15 s. Processes of curves count.
Ratio: allowed / measured CPU; allowed is 5 % of a core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from launcher.contract.run_dir import RunDir
from support.jobs import free_ports
from support.run_dirs import hold, make_run, write_histories, write_status

RANKS_PER_HOST = 8
ALLOWED = 0.05
VIEWERS = 4


def cpu_seconds(pid: int) -> float:
    """Of a process and its children that have ended."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def report(run: RunDir, ranks: int, ended: threading.Event) -> None:
    """Write every rank's status, and a row of the history, once a second."""
    step = 420
    row = json.loads(run.metrics_jsonl.read_text().splitlines()[-1])
    while not ended.is_set():
        step += 1
        with run.metrics_jsonl.open("a") as file:
            file.write(json.dumps(row | {"step": step, "samples_seen": 256 * step}) + "\n")
        for rank in range(ranks):
            write_status(run, 1, rank, f"n{rank // RANKS_PER_HOST:03}", step, "training", time.time())
            time.sleep(0.5 / ranks)


def ask(url: str, every_s: float, ended: threading.Event, seconds: list[float]) -> None:
    while not ended.wait(every_s):
        begun = time.monotonic()
        with urllib.request.urlopen(url) as answer:  # noqa: S310  our own server
            answer.read()
        seconds.append(time.monotonic() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    port = free_ports(1)
    with tempfile.TemporaryDirectory() as folder:
        hosts = options.ranks // RANKS_PER_HOST
        run = make_run(Path(folder) / "run", hosts=hosts, ranks_per_host=RANKS_PER_HOST)
        write_histories(run)
        hold(run)
        argv = [sys.executable, "-P", "-m", "vpred_train.entry", "launcher.live.serve", folder]
        server = subprocess.Popen([*argv, "--listen", f"127.0.0.1:{port}"], stderr=subprocess.PIPE)
        try:
            server.stderr.readline()
            ended, pages, scrapes = threading.Event(), [], []
            site = f"http://127.0.0.1:{port}"
            asked = [(f"{site}/runs/run/state.json", 2.0, pages)] * VIEWERS
            asked += [(f"{site}/metrics", 15.0, scrapes), (f"{site}/sd", 15.0, scrapes)]
            threads = [threading.Thread(target=ask, args=(url, every, ended, kept)) for url, every, kept in asked]
            threads.append(threading.Thread(target=report, args=(run, options.ranks, ended)))
            for thread in threads:
                thread.start()
            time.sleep(5)
            before = cpu_seconds(server.pid)
            time.sleep(options.seconds)
            share = (cpu_seconds(server.pid) - before) / options.seconds
            ended.set()
            for thread in threads:
                thread.join()
            memory = Path(f"/proc/{server.pid}/status").read_text().partition("VmHWM:")[2].split()[0]
        finally:
            server.kill()
    slowest = max([*pages, *scrapes])
    print(f"{options.ranks} ranks, {VIEWERS} viewers: {100 * share:.2f} % of a core, {int(memory) >> 10} MiB")
    print(f"state.json mean {1000 * sum(pages) / len(pages):.0f} ms, slowest answer {1000 * slowest:.0f} ms")
    print(f"serve_cpu ratio {ALLOWED / share:.2f}")


if __name__ == "__main__":
    main()
