"""The only place that reads or writes the process environment."""

import os
from collections.abc import Mapping


def environment() -> dict[str, str]:
    """A copy of the environment: changing it changes nothing outside."""
    return dict(os.environ)


def export(variables: Mapping[str, str]) -> None:
    """Set variables in this process; what it starts or loads afterwards sees them."""
    os.environ.update(variables)
