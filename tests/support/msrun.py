"""Ranks under MindSpore's msrun."""

import os
import subprocess
import sys
from pathlib import Path

import psutil

from support.jobs import free_ports

DEADLINE_S = 240
# MindSpore's defaults make each job's start and end wait for many seconds.
HASTE = {"MS_RETRY_INTERVAL_LOWER": "0", "MS_RETRY_INTERVAL_UPPER": "1", "MS_NODE_TIMEOUT": "5"}


def msrun(ranks: int, arguments: list[str], folder: Path) -> tuple[int, list[str]]:
    """Run python with these arguments on every rank; returns msrun's exit code and the ranks' logs."""
    port = str(free_ports(1))
    binaries = Path(sys.executable).parent
    argv = [str(binaries / "msrun"), f"--worker_num={ranks}", f"--local_worker_num={ranks}", f"--master_port={port}"]
    argv += ["--join=True", f"--log_dir={folder / 'logs'}", "python", *arguments]
    env = os.environ | HASTE | {"PATH": f"{binaries}:{os.environ['PATH']}"}
    answer = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=DEADLINE_S, env=env)
    assert left_behind(port) == []
    return answer.returncode, [(folder / "logs" / f"worker_{rank}.log").read_text() for rank in range(ranks)]


def left_behind(port: str) -> list[psutil.Process]:
    """Processes that msrun started and that outlived it."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("MS_SCHED_PORT") == port:
                found.append(process)
        except psutil.Error:
            continue  # another user's, or gone meanwhile
    return found
