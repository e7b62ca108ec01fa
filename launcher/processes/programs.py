"""Asks programs of the system, such as those of a scheduler, that may be missing or may not answer."""

import shutil
import subprocess
from collections.abc import Mapping, Sequence

from launcher.contract.config import ConfigError
from launcher.contract.environment import environment

_TIMEOUT_S = 60.0


class ProgramError(ConfigError):
    """Says that a program cannot be asked: it is not installed here, or it did not answer in time."""


def ask(
    argv: Sequence[str], stdin: str = "", timeout_s: float = _TIMEOUT_S, env: Mapping[str, str] | None = None
) -> "subprocess.CompletedProcess[str]":
    """Run `argv` to its end and return what it printed.

    env: None for this process's environment

    Raises ProgramError: when the program is not on PATH, cannot be started, or has not ended after `timeout_s`.
    """
    env = environment() if env is None else env
    program = shutil.which(argv[0], path=env.get("PATH"))
    if program is None:
        raise ProgramError(f"{argv[0]}: found none on PATH", "run this on a machine that has it")
    try:
        return subprocess.run(
            [program, *argv[1:]],
            env=env,
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except OSError as error:
        raise ProgramError(f"{program}: cannot be started ({error.strerror})") from None
    except subprocess.TimeoutExpired:
        raise ProgramError(f"{argv[0]}: no answer in {timeout_s:.0f} s", "try again later") from None
