"""Makes a run's state and step on the engine of a name. This table is the only place that knows several engines."""

from pathlib import Path

from launcher.contract.accelerators import Accelerator
from launcher.contract.config import ConfigError
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, SingleProcess
from vpred_train.distributed.device_collective import DeviceCollective
from vpred_train.distributed.flat_space import FlatSpace
from vpred_train.engine.device.state import DeviceState
from vpred_train.engine.device.step import DeviceStep, make_graphs
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
    loss_and_gradients = CachedGraph(graph, config, graph_folder if accelerator.cached_graphs else None)
    return state, HostStep(config, state, collective, inputs, Objective(config), loss_and_gradients)


def make_device(
    config: TrainConfig,
    networks: Networks,
    collective: Collective,
    accelerator: Accelerator,
    progress: Progress,
    inputs: ModelInputs,
    graph_folder: Path | None = None,
) -> tuple[DeviceState, DeviceStep]:
    """Make the state and the step of the device engine. Arguments as in `make_host`.

    Raises ConfigError: when the ranks do not communicate through MindSpore.
    """
    if not isinstance(collective, SingleProcess | DeviceCollective):
        raise ConfigError(
            "engine: found 'device', but mpirun's ranks communicate by mpi4py, which the device's graph cannot call",
            "launcher.init=dynamic_cluster or launcher.kind=msrun in the cluster file, or engine=host",
        )
    space = FlatSpace(networks, config.trainable)
    state = DeviceState(config, space, collective, progress)
    backend, loss = accelerator.msrun_collective, DiffusionLoss(networks)
    graphs = make_graphs(config, loss, space, state.local, state.arrays, collective.world_size, backend)
    keeps = graph_folder if accelerator.cached_graphs else None
    return state, DeviceStep(config, state, collective, inputs, Objective(config), graphs, keeps)


ENGINES: dict[str, EngineFactory] = {"host": make_host, "device": make_device}
