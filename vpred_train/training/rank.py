"""Describes one rank of a run: what it is, what it trains, and where it reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from ssl import SSLContext

from launcher.contract.accelerators import ACCELERATORS, Accelerator
from launcher.contract.environment import environment
from launcher.contract.identity import Identity, read_identity
from launcher.contract.run_dir import AttemptDir, RunDir
from monitoring import RankLabels, Users
from vpred_train import runtime
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, SingleProcess


@dataclass(frozen=True)
class MetricsPlace:
    """Says where and how a rank serves its metrics.

    ports: to be tried one after the other
    tls, users: None serve HTTP, and everybody
    linger_s: wait at the end for one more scrape, at most so long, seconds
    """

    address: str
    ports: Sequence[int]
    tls: SSLContext | None = None
    users: Users | None = None
    linger_s: float = 0.0


@dataclass(frozen=True)
class RankContext:
    """Holds what is fixed before a rank's first step.

    config: recipe, with `precision` resolved for the accelerator
    attempt: folder of this start in the run directory
    metrics_at: where this rank serves its metrics; None serves none
    run_name: label `run` of the metrics
    profiled_steps: steps to record with MindSpore's profiler
    device_id: physical number of its device on the host
    """

    config: TrainConfig
    identity: Identity
    accelerator: Accelerator
    collective: Collective
    run: RunDir
    attempt: AttemptDir
    metrics_at: MetricsPlace | None = None
    run_name: str = "run"
    profiled_steps: int = 0
    device_id: int = 0

    @property
    def labels(self) -> RankLabels:
        """Return what names this rank in metrics. In Kubernetes the node has another name than the pod."""
        identity = self.identity
        node = environment().get("VPRED_NODE_NAME") or identity.hostname
        return RankLabels(self.run_name, str(identity.rank), str(identity.local_rank), node, str(self.device_id))

    @property
    def is_first(self) -> bool:
        """Return whether this is rank 0, which writes what the run has once."""
        return self.identity.rank == 0


def single_rank(config: TrainConfig, folder: Path) -> RankContext:
    """Start MindSpore on CPU, and make this process the only rank of a run in `folder`.

    config: recipe as `load_recipe` returns it
    Call it before any MindSpore import. It is for programs that no launcher starts.
    """
    runtime.start_single()
    cpu, run = ACCELERATORS["cpu"], RunDir(folder)
    attempt = run.attempt(run.next_attempt())
    attempt.root.mkdir(parents=True, exist_ok=True)
    config = config.model_copy(update={"precision": config.precision.on(cpu)})
    return RankContext(config, read_identity({}), cpu, SingleProcess(), run, attempt)
