"""Weights to start from, and low-rank adaptation of them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import OF_THE_MACHINE, Section
from vpred_train.config.diffusion import PredictionType
from vpred_train.config.model import Network
from vpred_train.config.numbers import AboveZero, Positive


class PretrainedConfig(Section):
    """Weights to start from: a file of MindONE or Stability or a diffusers folder, told by its content.

    `networks`: which of them to take; the others begin fresh. `weights`: auto is the moving average where there is one.
    `prediction_type_was`: what the weights predict, where the run trains them to predict something else: the recipe's
    diffusion.prediction_type (Lin et al. 2023, arXiv 2305.08891, section 3.2: eps weights to v with zero terminal SNR).
    `xxh3` is the digest of the file; it is filled in, or pins the file when the recipe tells it.
    """

    path: Annotated[Path, OF_THE_MACHINE]
    weights: Literal["auto", "ema", "raw"] = "auto"
    networks: Annotated[tuple[Network, ...], Field(min_length=1)] = ("unet", "text_encoder", "vae")
    prediction_type_was: PredictionType | None = None
    xxh3: str | None = None

    @model_validator(mode="after")
    def the_unet_is_taken(self) -> Self:
        if self.prediction_type_was is not None and "unet" not in self.networks:
            raise ValueError(
                f"prediction_type_was is {self.prediction_type_was!r}, but networks leaves the unet out, which alone "
                "predicts; leave one of them out"
            )
        return self


class LoraConfig(Section):
    """Low-rank adaptation of the attention projections of the `trainable` networks: W + alpha / rank * up @ down
    (Hu et al. 2021, arXiv 2106.09685, section 4.1). Only up and down learn; `alpha` is `rank` unless told.
    """

    rank: Positive = 4
    alpha: AboveZero | None = None

    @property
    def scale(self) -> float:
        """What the product of the factors is multiplied by."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
