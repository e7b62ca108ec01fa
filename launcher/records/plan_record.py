"""Reads from plan.json what watchers of a run need: where its ranks are and how long a step may take."""

from pydantic import ConfigDict

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
    """Is plan.json. Plans of earlier versions name no engine."""

    model_config = ConfigDict(extra="ignore")
    accelerator: str = "cpu"
    engine: str = "host"
    ranks: tuple[PlannedRank, ...] = ()
    supervision: PlannedSupervision = PlannedSupervision()
