"""Pins the pretrained weights of a recipe by digest and reads them lazily."""

from launcher.contract.config import ConfigError
from vpred_train.config.train import TrainConfig
from vpred_train.config.weights import PretrainedConfig
from vpred_train.weights.formats.stored_tensor import LazyTensors
from vpred_train.weights.layouts.read_write import weights_of
from vpred_train.weights.layouts.weight_source import open_weights, weights_digest


def pin_digest(pretrained: PretrainedConfig) -> PretrainedConfig:
    """Return `pretrained` with the digest of its file, so that a run continues with no other file.

    Raises ConfigError: when the file cannot be read or has another digest than `pretrained.xxh3`.
    """
    try:
        found = weights_digest(pretrained.path)
    except OSError as error:
        raise ConfigError(f"{pretrained.path}: cannot be read ({error.strerror}); set pretrained.path") from None
    if pretrained.xxh3 not in (None, found):
        raise ConfigError(
            f"{pretrained.path}: xxh3 is {found}, but pretrained.xxh3 is {pretrained.xxh3}; give that file"
        )
    return pretrained.model_copy(update={"xxh3": found})


def open_pretrained(config: TrainConfig) -> LazyTensors:
    """Return the pretrained tensors under Stability's names, read lazily; none without `pretrained`.

    Raises ConfigError: when they do not fit the model.
    """
    if config.pretrained is None:
        return LazyTensors({})
    source = open_weights(config.pretrained.path, config.model)
    return weights_of(source, config.pretrained.weights, config.model)
