"""Makes a run's state and step on the engine of a name. This table is the only place that knows several engines."""

from pathlib import Path

from launcher.contract.accelerators import Accelerator
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.graph_cache import CachedGraph
from vpred_train.engine.host.state import HostState
from vpred_train.engine.host.step import HostStep, LossAndGradients
from vpred_train.engine.inputs import ModelInputs
from vpred_train.engine.objective import DiffusionLoss, Objective
from vpred_train.engine.progress import Progress
from vpred_train.engine.protocol import EngineFactory
from vpred_train.models.networks import Networks


def make_host(
    config: TrainConfig,
    networks: Networks,
    collective: Collective,
    accelerator: Accelerator,
    progress: Progress,
    inputs: ModelInputs,
    graph_folder: Path | None = None,
) -> tuple[HostState, HostStep]:
    """Make the state and the step of the host engine.

    graph_folder: keeps this rank's compiled graph where the accelerator can read it back; None compiles it each time
    """
    state = HostState(config, FlatSpace(networks, config.trainable), collective, progress)
    graph = LossAndGradients(DiffusionLoss(networks), state.space.parameters)
    keeps = graph_folder if accelerator.cached_graphs else None
    loss_and_gradients = graph if keeps is None else CachedGraph(graph, config, keeps)
    return state, HostStep(config, state, collective, inputs, Objective(config), loss_and_gradients)


ENGINES: dict[str, EngineFactory] = {"host": make_host}
