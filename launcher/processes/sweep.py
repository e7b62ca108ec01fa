"""Clears hosts of what earlier attempts of a run left there. Each host runs this small program.

`launcher.processes.sweep --run-dir D` kills every rank of the run on this host. Its exit code is 1 if some stay.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from launcher.processes.ssh import Remote
from launcher.processes.tied import own_program, workers_of

_CHECKOUT = Path(__file__).resolve().parents[2]
_GONE_S = 5.0
_TIMEOUT_S = 30.0


def sweep_hosts(hosts: Sequence[str], run_dir: Path, remote: Remote) -> list[str]:
    """Clear `hosts` of the run's ranks, all at once. Returns those that could not be cleared, in their order."""
    # Run this launcher's code, not whatever is installed there.
    program = own_program(sys.executable, "launcher.processes.sweep")
    argv = ("env", f"PYTHONPATH={_CHECKOUT}", *program, "--run-dir", str(run_dir))
    answers = remote.run(dict.fromkeys(hosts, argv), _TIMEOUT_S)
    return [host for host in hosts if answers[host].returncode != 0]


def sweep_here(run_dir: Path) -> bool:
    """Kill every rank of the run on this host. Returns whether all are gone."""
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
    parser = argparse.ArgumentParser(prog="launcher.processes.sweep", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    return 0 if sweep_here(parser.parse_args().run_dir) else 1


if __name__ == "__main__":
    sys.exit(main())
