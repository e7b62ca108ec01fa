"""Reads from plan.json what watchers of a run need: where its ranks are and how long a step may take."""

from typing import Annotated

from pydantic import ConfigDict, Field

from launcher.contract.run_dir import Record


class PlannedRank(Record):
    """Is a rank in plan.json.

    metrics: host:port that was planned for its metrics; plans of earlier versions have none
    """

    model_config = ConfigDict(extra="ignore")
    rank: int
    host: str
    local_rank: int = 0
    device_id: int | None = None
    metrics: str | None = None


class PlannedTimeouts(Record):
    """Is `supervision.timeouts` in plan.json."""

    model_config = ConfigDict(extra="ignore")
    step_s: float | None = None


class PlannedSupervision(Record):
    """Is `supervision` in plan.json."""

    model_config = ConfigDict(extra="ignore")
    timeouts: PlannedTimeouts = PlannedTimeouts()


class PlannedRun(Record):
    """Is plan.json. Plans of earlier versions name no engine and no run.

    run_name: value of the label `run`, None for the name of the run directory
    metrics_tls: ranks serve their metrics over HTTPS
    """

    model_config = ConfigDict(extra="ignore")
    run_name: str | None = None
    metrics_tls: bool = False
    grafana_url: Annotated[str, Field(pattern=r"^https?://")] | None = None  # it becomes a link
    accelerator: str = "cpu"
    engine: str = "host"
    ranks: tuple[PlannedRank, ...] = ()
    supervision: PlannedSupervision = PlannedSupervision()
