"""Training from published weights: taking them over, and making sure that they are what the recipe says."""

import logging
from collections.abc import Sequence

from data import Source
from launcher.contract.config import ConfigError
from vpred_train.collectives import Collective
from vpred_train.config import TrainConfig
from vpred_train.inputs import Inputs
from vpred_train.model_config import Network
from vpred_train.models.lora import add_lora
from vpred_train.models.networks import Networks
from vpred_train.models.weights import set_weights
from vpred_train.probe import probe
from vpred_train.recipe import open_pretrained

logger = logging.getLogger(__name__)


def build_networks(config: TrainConfig) -> Networks:
    """The networks with the weights that training starts from, computing in the dtype of a resolved `precision`."""
    networks = networks_of(config, config.networks_in_training)
    if config.lora is not None:
        add_lora(networks, config.lora, config.model, config.trainable, config.seed)
    if config.recompute:
        networks.recompute_blocks()
    return networks


def networks_of(config: TrainConfig, parts: Sequence[Network]) -> Networks:
    """Those networks, with pretrained weights where the recipe tells them."""
    networks = Networks(config.model, config.seed, config.precision.dtype, parts)
    if config.pretrained is not None:
        set_weights(networks, open_pretrained(config), config.pretrained.networks)
    return networks


def complete(config: TrainConfig, networks: Networks) -> None:
    """Add the networks that a run from a cache trains without and makes images with."""
    absent = [part for part in config.model.networks if getattr(networks, part) is None]
    for part, network in networks_of(config, absent).name_cells().items():
        setattr(networks, part, network)


def check_prediction(
    config: TrainConfig, networks: Networks, source: Source, inputs: Inputs, collective: Collective
) -> None:
    """Raise ConfigError on every rank when the pretrained UNet predicts something else than the recipe says."""
    if config.pretrained is None or "unet" not in config.pretrained.networks:
        return
    verdict, residuals = None, ""
    if collective.rank == 0:
        found = probe(networks, config.diffusion, source, inputs)
        verdict, residuals = found.verdict, str(found)
        logger.info("probe of the pretrained weights: residuals %s", residuals)
    verdict, residuals = collective.broadcast_object((verdict, residuals))
    wanted = config.diffusion.prediction_type
    if verdict not in (None, wanted):
        raise ConfigError(
            f"{config.pretrained.path}: predicts {verdict} (residuals {residuals}), but diffusion.prediction_type "
            f"is {wanted}; set it to {verdict}"
        )
    if verdict is None:
        logger.warning("the pretrained weights predict neither v nor eps nor x0 clearly (residuals %s)", residuals)
