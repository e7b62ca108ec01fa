"""The host engine of a recipe, as `training.run` makes it, for tests that need no more of a run."""

from typing import Any

from launcher.contract.accelerators import ACCELERATORS
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import Collective, SingleProcess


def host_step(
    config: TrainConfig, networks: Any, collective: Collective | None = None, inputs: Any = None, data_digest: str = ""
) -> Any:
    """A step on CPU, with its `state`, from the networks' weights."""
    from vpred_train.engine.engines import make_host
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.engine.progress import Progress

    inputs = inputs or OnlineInputs(config.model, config.data, config.seed, networks)
    progress = Progress.fresh(config, data_digest)
    _, step = make_host(config, networks, collective or SingleProcess(), ACCELERATORS["cpu"], progress, inputs)
    return step


def host_state(config: TrainConfig, space: Any, collective: Collective | None = None) -> Any:
    """A state without a step: no graph is made."""
    from vpred_train.engine.host.state import HostState
    from vpred_train.engine.progress import Progress

    return HostState(config, space, collective or SingleProcess(), Progress.fresh(config))


def networks_of(step: Any) -> Any:
    """The networks that a step trains."""
    return step.loss_and_gradients.loss.networks
