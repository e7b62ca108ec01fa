"""Clearing hosts of what earlier attempts of a run left there, each host by a small program of its own.

`python -P -m launcher.sweep --run-dir D`: kill every rank of the run on this host; exit code 1 if some stay.
"""

import argparse
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from launcher.cluster import LOCAL_ADDRESSES
from launcher.processes import workers_of

# Runs an argv on the host of this address and returns its exit code, None when the host does not answer.
RunOn = Callable[[str, Sequence[str]], int | None]

_CHECKOUT = Path(__file__).resolve().parents[1]
_GONE_S = 5.0
_AT_ONCE = 64
_SSH_FAILED = 255
_SSH_TIMEOUT_S = 20.0
_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=5", "ServerAliveInterval=2", "ServerAliveCountMax=3")


def sweep_hosts(hosts: Sequence[str], run_dir: Path, run_on: RunOn) -> list[str]:
    """Clear `hosts` of the run's ranks, all at once; returns those that could not be cleared, in their order."""
    # The code of this launcher, not of whatever is installed there.
    argv = ("env", f"PYTHONPATH={_CHECKOUT}", sys.executable, "-P", "-m", "launcher.sweep", "--run-dir", str(run_dir))
    with ThreadPoolExecutor(min(len(hosts), _AT_ONCE) or 1) as pool:
        codes = list(pool.map(lambda host: run_on(host, argv), hosts))
    return [host for host, code in zip(hosts, codes, strict=True) if code != 0]


def here_or_over_ssh(host: str, argv: Sequence[str]) -> int | None:
    """Run `argv` on `host`, by ssh unless that is this machine."""
    if host in LOCAL_ADDRESSES or host in {socket.gethostname(), socket.getfqdn()}:
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True).returncode
    return over_ssh(host, argv)


def over_ssh(host: str, argv: Sequence[str]) -> int | None:
    """Run `argv` on `host` by ssh; None when there is no answer."""
    options = [word for option in _SSH_OPTIONS for word in ("-o", option)]
    command = ["ssh", *options, "--", host, shlex.join(argv)]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_SSH_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return None if done.returncode == _SSH_FAILED else done.returncode


def sweep_here(run_dir: Path) -> bool:
    """Kill every rank of the run on this host; whether all are gone."""
    deadline_s = time.monotonic() + _GONE_S
    while pids := workers_of(run_dir):
        if time.monotonic() >= deadline_s:
            return False
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return True


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m launcher.sweep", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    return 0 if sweep_here(parser.parse_args().run_dir) else 1


if __name__ == "__main__":
    sys.exit(main())
