"""Builds a run's networks, loads the weights that the recipe names, and chooses the schedule that probes them."""

import logging
from collections.abc import Sequence

from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import Network
from vpred_train.config.train import TrainConfig
from vpred_train.models.lora import add_lora
from vpred_train.models.networks import Networks
from vpred_train.models.weights import set_weights
from vpred_train.weights.pretrained import open_pretrained

logger = logging.getLogger(__name__)


def build_networks(config: TrainConfig) -> Networks:
    """Build the networks with the weights that training starts from; they compute in the dtype of `precision`.

    config: `precision` must be resolved.
    Raises ConfigError: when the weights do not fit or are not finite.
    """
    networks = networks_of(config, config.networks_in_training)
    if config.lora is not None:
        add_lora(networks, config.lora, config.model, config.trainable, config.seed)
    if config.recompute:
        networks.recompute_blocks()
    return networks


def networks_of(config: TrainConfig, parts: Sequence[Network]) -> Networks:
    """Build the networks named in `parts`, with pretrained weights where the recipe names them."""
    networks = Networks(config.model, config.seed, config.precision.dtype, parts)
    if config.pretrained is not None:
        set_weights(networks, open_pretrained(config), config.pretrained.networks)
    return networks


def add_missing_networks(config: TrainConfig, networks: Networks) -> None:
    """Add the networks that a run from a cache does not train with, but needs to make images."""
    absent = [part for part in config.model.networks if getattr(networks, part) is None]
    for part, network in networks_of(config, absent).name_cells().items():
        setattr(networks, part, network)


def probed_schedule(config: TrainConfig) -> DiffusionConfig:
    """Return the schedule for the probe of the weights; eps weights were not trained with zero terminal SNR."""
    was = None if config.pretrained is None else config.pretrained.prediction_type_was
    return config.diffusion.model_copy(update={"zero_terminal_snr": False}) if was == "eps" else config.diffusion
