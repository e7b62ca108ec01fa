"""Writes a run's trained tensors as a full model in any layout. Frozen tensors come from the pretrained weights."""

from collections.abc import Collection
from functools import partial
from pathlib import Path

from launcher.contract.config import ConfigError
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.read_write import weights_of, write_weights
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS, stability_shapes
from vpred_train.weights.layouts.weight_source import open_weights
from vpred_train.weights.lora.factors import factors_of
from vpred_train.weights.lora.files import write_lora
from vpred_train.weights.pretrained import pin_digest


def write_whole(
    output: Path,
    layout: str,
    config: TrainConfig,
    trained: LazyTensors,
    record: ParameterizationRecord,
    base: Path | None = None,
) -> None:
    """Write the `trained` tensors together with the frozen ones; after LoRA training write only the factors.

    One tensor is in memory at a time.
    trained: tensors under Stability's names.
    base: where the weights that training began with are now; default `pretrained.path`.
    Raises ConfigError: when those weights are missing or changed, or a tensor does not fit.
    """
    if config.lora is not None:
        write_lora(output, factors_of(trained, config.lora), layout, record)
        return
    frozen = _frozen(config, trained.keys(), base)
    write_weights(output, LazyTensors({**frozen.makers, **trained.makers}), layout, record)


def _frozen(config: TrainConfig, trained: Collection[str], base: Path | None) -> LazyTensors:
    missing = [name for name in stability_shapes(config.model) if name not in trained]
    if not missing or config.pretrained is None:  # a recipe that neither trains nor takes a network is refused
        return LazyTensors({})
    pretrained = config.pretrained.model_copy(update={"path": base or config.pretrained.path})
    if not pretrained.path.exists():
        networks = [part for part, prefix in COMPONENTS.items() if any(name.startswith(prefix) for name in missing)]
        raise ConfigError(
            f"{pretrained.path}: no such file or folder, and the checkpoint holds only what was trained, not "
            f"{' and '.join(networks)}; give the place where it is now with --base"
        )
    pin_digest(pretrained)  # it must be the file that training began with
    tensors = weights_of(open_weights(pretrained.path, config.model), pretrained.weights, config.model)
    return LazyTensors({name: partial(tensors.__getitem__, name) for name in missing})
