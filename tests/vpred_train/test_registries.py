"""Each registry holds the choices that its configuration key names, no more and no fewer."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest

from launcher.cluster.config import ClusterConfig
from launcher.cluster.operations import OperationSettings
from launcher.contract.accelerators import ACCELERATORS, Accelerator, Operations
from launcher.contract.run_dir import Phase
from launcher.supervision.hangs import TIMEOUT_OF
from launcher.supervision.progress import _WORDS as PHASE_WORDS
from vpred_train.config.diffusion import PredictionType
from vpred_train.config.objective import Weight
from vpred_train.config.optimizer import DEVICE_OPTIMIZERS, EmaConfig, OptimizerConfig, ScheduleConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.parameterization import TARGETS, X_FROM_PREDICTION
from vpred_train.diffusion.samplers.registry import SAMPLERS
from vpred_train.diffusion.samplers.spacing import SPACINGS
from vpred_train.diffusion.weighting import UNIFORM, WEIGHTS
from vpred_train.distributed.collectives import COLLECTIVES
from vpred_train.ema.profiles import BY_UPDATES
from vpred_train.engine.engines import ENGINES
from vpred_train.models.indexing import INDEXING
from vpred_train.optim.learning_rate import SHAPES
from vpred_train.optim.optimizers import OPTIMIZERS


def choices(annotation: Any) -> Iterator[str]:
    """The strings of all Literals within an annotation."""
    if get_origin(annotation) is Literal:
        yield from get_args(annotation)
    else:
        for part in get_args(annotation):
            yield from choices(part)


def of(model: Any, key: str) -> set[str]:
    """The choices of a key of a configuration section or a dataclass."""
    fields = getattr(model, "model_fields", None)
    return set(choices(fields[key].annotation if fields else model.__annotations__[key]))


def known_operations(kind: str) -> set[str]:
    """The values that any accelerator has for a kind of operation."""
    return {name for accelerator in ACCELERATORS.values() for name in accelerator.known_operations[kind]}


# The second set: choices that need no entry, with the reason beside them.
TABLE: dict[str, tuple[set[str], set[str], set[str]]] = {
    "sampler": (of(SamplingConfig, "sampler"), set(), set(SAMPLERS)),
    "timestep_spacing": (of(SamplingConfig, "timestep_spacing"), set(), set(SPACINGS)),
    "optimizer": (of(OptimizerConfig, "name"), set(), set(OPTIMIZERS)),
    "schedule": (of(ScheduleConfig, "name"), {"multi_step"}, set(SHAPES)),  # its shape depends on milestones
    "weight": (set(get_args(Weight)), {"uniform"}, set(WEIGHTS)),  # 1 on any prediction
    "weight on what is predicted": (set(get_args(PredictionType)), set(), set(UNIFORM)),
    "target": (set(get_args(PredictionType)), set(), set(TARGETS)),
    "image of a prediction": (set(get_args(PredictionType)), set(), set(X_FROM_PREDICTION)),
    "ema profile": (of(EmaConfig, "profiles"), {"power"}, set(BY_UPDATES)),  # it counts samples, not updates
    "accelerator": (of(ClusterConfig, "accelerator"), set(), set(ACCELERATORS)),
    "collective": (of(Accelerator, "collective") | of(Accelerator, "msrun_collective"), set(), set(COLLECTIVES)),
    "engine": (of(ClusterConfig, "engine"), {"auto"}, set(ENGINES)),
    "optimizer on the device": (of(OptimizerConfig, "name"), set(), set(DEVICE_OPTIMIZERS)),
    "kind of operation": (set(Operations.__annotations__), set(), set(ACCELERATORS["ascend"].known_operations)),
    "kind of operation on cpu": (set(Operations.__annotations__), set(), set(ACCELERATORS["cpu"].known_operations)),
    "indexing": (known_operations("indexing"), set(), set(INDEXING)),
    **{
        f"operations.{kind}": (of(OperationSettings, kind), {"auto"}, known_operations(kind))
        for kind in OperationSettings().names
    },
    "timeout of a phase": (set(get_args(Phase)), set(), set(TIMEOUT_OF)),
    "word for a phase": (set(get_args(Phase)), set(), set(PHASE_WORDS)),
}


@pytest.mark.parametrize("name", TABLE)
def test_a_registry_holds_what_its_key_names(name: str) -> None:
    named, without_entry, registered = TABLE[name]
    assert named and without_entry <= named
    assert named - without_entry == registered
