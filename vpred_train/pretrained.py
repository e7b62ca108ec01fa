"""Training from published weights: taking them over, and making sure that they are what the recipe says."""

import logging
from collections.abc import Sequence

from data import Source
from launcher.contract.config import ConfigError
from vpred_train.collectives import Collective
from vpred_train.config import DiffusionConfig, TrainConfig
from vpred_train.inputs import Inputs
from vpred_train.model_config import Network
from vpred_train.models.lora import add_lora
from vpred_train.models.networks import Networks
from vpred_train.models.weights import set_weights
from vpred_train.probe import NOT_FINITE, probe
from vpred_train.recipe import open_pretrained

logger = logging.getLogger(__name__)


def build_networks(config: TrainConfig) -> Networks:
    """The networks with the weights that training starts from, computing in the dtype of a resolved `precision`. Raises
    ConfigError for weights that do not fit or are not finite."""
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
    """Raise ConfigError on every rank when the pretrained UNet predicts something else than the recipe says, or
    what is not finite."""
    if config.pretrained is None or "unet" not in config.pretrained.networks:
        return
    was, wanted = config.pretrained.prediction_type_was, config.diffusion.prediction_type
    expected = was or wanted
    verdict, residuals, finite = None, "", True
    if collective.rank == 0:
        found = probe(networks, probed_schedule(config), source, inputs)
        verdict, residuals, finite = found.verdict, str(found), found.finite
        logger.info("probe of the pretrained weights: residuals %s", residuals)
    verdict, residuals, finite = collective.broadcast_object((verdict, residuals, finite))
    if not finite:
        raise ConfigError(
            f"{config.pretrained.path}: {NOT_FINITE} (residuals {residuals}); give other weights, or "
            "precision.compute_dtype=float32"
        )
    if verdict not in (None, expected):
        key = "diffusion.prediction_type" if was is None else "pretrained.prediction_type_was"
        way = f", or set pretrained.prediction_type_was={verdict} to train them to predict {wanted}" * (was is None)
        raise ConfigError(
            f"{config.pretrained.path}: predicts {verdict} (residuals {residuals}), but {key} is {expected}; "
            f"set it to {verdict}{way}"
        )
    if verdict is None:
        logger.warning("the pretrained weights predict neither v nor eps nor x0 clearly (residuals %s)", residuals)
    elif expected != wanted:
        logger.info("the pretrained weights predict %s; they are trained to predict %s", expected, wanted)


def probed_schedule(config: TrainConfig) -> DiffusionConfig:
    """The schedule on which the weights are probed: eps weights were not trained to zero terminal SNR."""
    was = None if config.pretrained is None else config.pretrained.prediction_type_was
    return config.diffusion.model_copy(update={"zero_terminal_snr": False}) if was == "eps" else config.diffusion
