"""Adds low-rank factors to the attention projections of networks whose own weights stay frozen."""

from collections.abc import Sequence

import numpy as np

from vpred_train.config.model import ModelConfig
from vpred_train.config.weights import LoraConfig
from vpred_train.models.layers import LowRank
from vpred_train.models.networks import Networks
from vpred_train.weights.layouts.tensor_shapes import stability_name
from vpred_train.weights.lora.factors import Target, attention_targets

SEED = 1  # used with the run's seed, so that the factors start from other draws than the networks


def add_lora(networks: Networks, config: LoraConfig, model: ModelConfig, parts: Sequence[str], seed: int) -> None:
    """Freeze `networks` and add fresh factors to each attention projection of `parts`. Only the factors are trainable.

    The factors of a weight `a.b.weight` become the parameters `a.b.lora.down` (rank, in) and `a.b.lora.up` (out, rank).
    """
    rng = np.random.default_rng([seed, SEED])
    targets = attention_targets(model, parts)
    cells = dict(networks.cells_and_names())
    for name, parameter in list(networks.parameters_and_names()):
        parameter.requires_grad = False
        shape = targets.get(Target(stability_name(name)))
        if shape is not None:
            cell, _, attribute = f"{name.removesuffix('weight')}lora".rpartition(".")
            setattr(cells[cell], attribute, LowRank(rng, shape, config.rank, config.scale))
    for name, parameter in networks.parameters_and_names():
        parameter.name = name  # MindSpore identifies parameters by it and does not prefix those added late
