"""Defines the cluster file's section on restarts."""

from typing import Annotated

from pydantic import Field

from launcher.cluster.hosts import Host
from launcher.contract.config import SecondsOrNone, Section


class RestartSettings(Section):
    """Restarts after a failed attempt, and the hosts that they take."""

    max_restarts: Annotated[int, Field(ge=0)] = 0
    """Number of times that a run is started again after failures. 0 ends the run with its first failure."""

    first_delay_s: SecondsOrNone = 10.0
    """Seconds before a restart. The wait is longer if a host cannot be reached and its lease has not run out.
    Kubernetes restarts containers after the same 10 s, doubled up to 300 s."""

    delay_factor: Annotated[float, Field(ge=1, le=10)] = 2.0
    """The delay grows by this factor with each further attempt in a row that commits no newer checkpoint."""

    max_delay_s: SecondsOrNone = 300.0
    """Upper bound of the delay in seconds."""

    max_without_progress: Annotated[int, Field(ge=1)] = 3
    """The run ends after this many attempts in a row that commit no newer checkpoint."""

    exclude_host_after: Annotated[int, Field(ge=1)] | None = 2
    """A host gives its place to a spare host after its failures have ended this many attempts. null excludes none.
    A host that cannot be reached always gives its place."""

    spare_hosts: tuple[Host, ...] = ()
    """Hosts that no rank starts on until they replace another host."""

    shrink: bool = False
    """Go on with fewer ranks and the same global batch when too few hosts are left. Each rank then needs more memory.
    false tries the excluded hosts again."""

    min_ranks: Annotated[int, Field(ge=1)] = 1
    """Lower bound of the number of ranks for `shrink`."""
