"""Renders the ranks of a run as Prometheus' service discovery reads them: one group of targets a rank."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launcher.contract.run_dir import RankStatus

# Prometheus drops labels that begin with two underscores after the discovery.
RUN_DIR_LABEL = "__vpred_run_dir"
_JOB = "vpred"


class Place(Protocol):
    """Says where a rank runs, as the plan has it."""

    @property
    def rank(self) -> int: ...
    @property
    def host(self) -> str: ...
    @property
    def local_rank(self) -> int: ...
    @property
    def device_id(self) -> int | None: ...
    @property
    def metrics(self) -> str | None: ...


def target_groups(
    run: str, run_dir: Path, places: Sequence[Place], statuses: Mapping[int, RankStatus], *, tls: bool = False
) -> list[dict[str, Any]]:
    """Return a group for each rank that has metrics. Without these labels `up == 0` would not say which rank it is.

    run: value of the label `run`
    statuses: newest status of each rank that has begun; its hostname and port replace those of the plan
    tls: the ranks serve their metrics over HTTPS
    """
    groups = []
    for place in places:
        status = statuses.get(place.rank)
        address = target(place, status)
        if address is None:
            continue
        labels = {"job": _JOB, "run": run, "rank": str(place.rank), "local_rank": str(place.local_rank)}
        labels |= {} if status is None else {"hostname": status.hostname}
        labels |= {} if place.device_id is None else {"device_id": str(place.device_id)}
        labels |= {"__scheme__": "https"} if tls else {}
        groups.append({"targets": [address], "labels": {**labels, RUN_DIR_LABEL: str(run_dir)}})
    return groups


def target(place: Place, status: RankStatus | None) -> str | None:
    """Return host:port of the rank's metrics, None where it serves none."""
    if place.metrics is None:
        return None
    host, _, planned = place.metrics.rpartition(":")
    port = planned if status is None or status.metrics_port is None else status.metrics_port
    return f"{host}:{port}"


def render(groups: Sequence[Mapping[str, Any]]) -> str:
    """Render groups as the text of a file for file_sd, or of an answer to http_sd."""
    return json.dumps(groups, indent=2) + "\n"


def run_dir_of(text: str) -> str | None:
    """Return the run directory that a file for file_sd belongs to, None where it declares none."""
    try:
        groups = json.loads(text)
        return str(groups[0]["labels"][RUN_DIR_LABEL])
    except (ValueError, LookupError, TypeError):
        return None
