"""Reads and writes the process environment. No other module does."""

import os
import pwd
from collections.abc import Iterable, Mapping


def environment() -> dict[str, str]:
    """Return a copy of the environment. A change to it has no effect outside."""
    return dict(os.environ)


def with_home(env: Mapping[str, str]) -> dict[str, str]:
    """Return `env` with a HOME. Without one (cron, systemd, `env -i`) not even `mpirun --version` runs.

    HOME comes from the system's password database. A user without an entry there, as in some containers, gets "/".
    """
    if env.get("HOME"):
        return dict(env)
    try:
        return {**env, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    except KeyError:
        return {**env, "HOME": "/"}


def forget(names: Iterable[str]) -> None:
    """Remove variables from this process's environment."""
    for name in list(names):
        os.environ.pop(name, None)


def export(variables: Mapping[str, str]) -> None:
    """Set variables in this process. Programs that it starts and libraries that it loads afterwards see them."""
    os.environ.update(variables)
