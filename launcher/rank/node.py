"""Runs msrun, or the ranks' shims, on a host where mpirun does not start the ranks itself. One runs per host.

`launcher.rank.node --kind msrun|local --run-dir D --attempt N ... -- SHIM ...`
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType

from launcher.contract.environment import environment
from launcher.contract.exit_codes import NOT_STARTED
from launcher.contract.identity import without_identity
from launcher.contract.process import die_with_parent, living_parent
from launcher.contract.run_dir import RunDir
from launcher.processes.tied import as_child_of, workers_of

_FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_POLL_S = 0.1
_TERM_GRACE_S = 5.0
_OF_MPI = ("OMPI_", "PMIX_", "PRTE_")


def main(argv: Sequence[str] | None = None) -> int:
    """Run this host's ranks to their end. Returns the first bad exit code of a rank, else 0."""
    options = _parser().parse_args(argv)
    env = environment()
    under_mpirun = "OMPI_COMM_WORLD_RANK" in env
    parent = living_parent() if under_mpirun else os.getppid()
    if parent is None:
        print("launcher.rank.node: mpirun is gone; not starting ranks nobody watches", file=sys.stderr)
        return NOT_STARTED
    die_with_parent(parent)
    node_rank = int(env["OMPI_COMM_WORLD_RANK"]) if under_mpirun else 0
    env = {name: value for name, value in without_identity(env).items() if not name.startswith(_OF_MPI)}
    os.chdir(options.run_dir)
    for number in _FORWARDED:
        # Send signals to the shims, which end in their own time. msrun would die of them.
        signal.signal(number, partial(_to_shims, options))
    if options.kind == "msrun":
        return _run_msrun(options, node_rank, env)
    return _run_shims(options, env)


def _to_shims(options: argparse.Namespace, number: int, frame: FrameType | None) -> None:
    for pid in workers_of(options.run_dir, options.attempt):
        try:
            if b"launcher.rank.shim" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                os.kill(pid, number)
        except OSError:
            continue  # it ended meanwhile


def _run_msrun(options: argparse.Namespace, node_rank: int, env: dict[str, str]) -> int:
    """Run msrun. It calls `python`, so the one that runs this process must be the first on PATH."""
    binaries = Path(sys.executable).parent
    logs = RunDir(options.run_dir).attempt(options.attempt).root / f"msrun_{node_rank}"
    logs.mkdir(parents=True, exist_ok=True)
    argv = [str(binaries / "msrun"), f"--worker_num={options.world_size}", f"--local_worker_num={options.local_size}"]
    argv += [f"--master_addr={options.scheduler_host}", f"--master_port={options.scheduler_port}"]
    argv += [f"--node_rank={node_rank}", f"--log_dir={logs}", "--join=True"]
    argv += [f"--cluster_time_out={options.join_timeout_s:.0f}"]
    if options.binding != "none":
        argv.append(f"--bind_{options.binding}=True")
    # Ranks write to their own logs; a `tail` for each would outlive a killed msrun.
    argv.append(f"--tail_worker_log={options.world_size}")
    argv += ["python", *options.shim[1:]]
    env = {**env, "PATH": f"{binaries}:{env.get('PATH', '')}", "MS_LOCAL_WORKER": str(options.local_size)}
    return subprocess.Popen(argv, env=env, preexec_fn=partial(as_child_of, os.getpid())).wait()


def _run_shims(options: argparse.Namespace, env: dict[str, str]) -> int:
    cores = sorted(os.sched_getaffinity(0))
    shims = []
    for rank in range(options.local_size):
        variables = {"VPRED_RANK": str(rank), "VPRED_LOCAL_RANK": str(rank)}
        variables |= dict.fromkeys(("VPRED_WORLD_SIZE", "VPRED_LOCAL_SIZE"), str(options.local_size))
        shims.append(subprocess.Popen(options.shim, env=env | variables))
        if options.binding == "core":
            os.sched_setaffinity(shims[-1].pid, {cores[rank % len(cores)]})
    while True:
        codes = [shim.poll() for shim in shims]
        bad = [code for code in codes if code]
        if bad:
            _end(shims)
            return bad[0] if bad[0] > 0 else 128 - bad[0]
        if None not in codes:
            return 0
        time.sleep(_POLL_S)


def _end(shims: Sequence["subprocess.Popen[bytes]"]) -> None:
    """End the other shims as mpirun does after a bad end: TERM to all, KILL to those that stay."""
    deadline_s = time.monotonic() + _TERM_GRACE_S
    for shim in shims:
        if shim.poll() is None:
            shim.terminate()
    while any(shim.poll() is None for shim in shims) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    for shim in shims:
        if shim.poll() is None:
            shim.kill()
        shim.wait()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="launcher.rank.node", allow_abbrev=False)
    parser.add_argument("--kind", choices=("msrun", "local"), required=True)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--world-size", type=int, required=True)
    parser.add_argument("--local-size", type=int, required=True)
    parser.add_argument("--scheduler-host", default="")
    parser.add_argument("--scheduler-port", type=int, default=0)
    parser.add_argument("--join-timeout-s", type=float, default=0.0)
    parser.add_argument("--binding", default="none")
    parser.add_argument("shim", nargs="+")
    return parser


if __name__ == "__main__":
    sys.exit(main())
