"""Watches the launcher's own node from two other nodes of its Slurm job (`launcher.run.guard`).

With --no-kill a job outlives the node of its batch script. Slurm would keep the other nodes, where nothing runs, until
the time limit. A guard puts the job back into the queue instead.
"""

import argparse
import logging
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from launcher.processes.tied import kill_session, own_program, start_tied
from launcher.run.after_run import after_run
from launcher.submit.slurm import batch_host, end_job, host_names

logger = logging.getLogger(__name__)

_GUARDS = 2
_POLL_S = 20.0
_END_S = 5.0
_OPTIONS = (
    *("--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--ntasks-per-node=1", "--cpus-per-task=1"),
    *("--mpi=none", "--distribution=block", "--export=ALL", "--quiet", "--input=none", "--chdir=/"),
)


@contextmanager
def guarded(run: RunDir, job_id: str, nodes: Sequence[str]) -> Iterator[None]:
    """Watch this process's node during the block.

    nodes: of the job, this one first
    """
    guards = tuple(nodes[1:])[-_GUARDS:]
    if not guards:
        yield
        return
    count = len(guards)
    argv = ["srun", *_OPTIONS, f"--nodes={count}", f"--ntasks={count}", f"--nodelist={','.join(guards)}", "--"]
    argv += [*own_program(sys.executable, "launcher.run.guard"), "--run-dir", str(run.root), "--job", job_id]
    argv += ["--guards", *guards]
    with Path("/dev/null").open("wb") as nowhere:
        step = start_tied(argv, environment(), Path("/"), nowhere, nowhere)
    try:
        yield
    finally:
        step.terminate()  # srun ends the step
        with suppress(subprocess.TimeoutExpired):
            step.wait(timeout=_END_S)
        kill_session(step)


def main(argv: Sequence[str] | None = None) -> int:
    """Wait until the job has lost its batch host, then decide on the job as its launcher would have."""
    parser = argparse.ArgumentParser(prog="launcher.run.guard", allow_abbrev=False)
    parser.add_argument("--run-dir", type=Path, required=True)
    parser.add_argument("--job", required=True)
    parser.add_argument("--guards", nargs="+", required=True)
    options = parser.parse_args(argv)
    run, here = RunDir(options.run_dir), environment().get("SLURMD_NODENAME", "")
    while not _acts(options.job, here, options.guards):
        time.sleep(_POLL_S)
    logging.basicConfig(filename=run.submit.job_log(options.job), format="%(message)s", level=logging.INFO)
    logger.warning("job %s: the node of its launcher is lost", options.job)
    after_run(run, options.job, ExitCode.FAILED, hosts_lost=True)
    end_job(options.job)  # nothing runs in it any more
    return 0


def _acts(job_id: str, here: str, guards: Sequence[str]) -> bool:
    """Return whether the batch host is lost and this node is the first guard that is left."""
    try:
        host, nodes = batch_host(job_id)
        living = host_names(nodes)
    except ConfigError:  # the controller may be busy, or be restarted
        return False
    return host not in living and here == next((guard for guard in guards if guard in living), None)


if __name__ == "__main__":
    sys.exit(main())
