"""The only place that reads or writes the process environment."""

import os
import pwd
from collections.abc import Mapping


def environment() -> dict[str, str]:
    """A copy of the environment: changing it changes nothing outside."""
    return dict(os.environ)


def with_home(env: Mapping[str, str]) -> dict[str, str]:
    """`env` with a HOME: without one (cron, systemd, `env -i`) not even `mpirun --version` runs.

    It is the one that the system has for this user, or "/" for a user whom it does not know, as in some containers.
    """
    if env.get("HOME"):
        return dict(env)
    try:
        return {**env, "HOME": pwd.getpwuid(os.getuid()).pw_dir}
    except KeyError:
        return {**env, "HOME": "/"}


def export(variables: Mapping[str, str]) -> None:
    """Set variables in this process; what it starts or loads afterwards sees them."""
    os.environ.update(variables)
