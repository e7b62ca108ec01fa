"""Weights to start from, and low-rank adaptation of them."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import OF_THE_MACHINE, Section
from vpred_train.config.diffusion import PredictionType
from vpred_train.config.model import Network
from vpred_train.config.numbers import AboveZero, Positive


class PretrainedConfig(Section):
    """Weights to start from. The model and what it predicts come from their record where the recipe is silent."""

    path: Annotated[Path, OF_THE_MACHINE]
    """File of MindONE or Stability, or diffusers folder; the content decides which.
    A relative path in a recipe starts at the recipe's folder."""

    weights: Literal["auto", "ema", "raw"] = "auto"
    """Take the moving average ("ema") or the raw weights of the file. "auto" takes the average if there is one."""

    networks: Annotated[tuple[Network, ...], Field(min_length=1)] = ("unet", "text_encoder", "vae")
    """Networks to take from the file. The others begin with random weights."""

    prediction_type_was: PredictionType | None = None
    """Quantity that the weights predict, if they are to learn `diffusion.prediction_type` instead. null: the same one.
    Lin et al. 2023 (arXiv 2305.08891, section 3.2) train eps weights to predict v."""

    xxh3: str | None = None
    """xxh3-128 digest of the file, hexadecimal; another file is refused. null: the run records it at its start."""

    @model_validator(mode="after")
    def _check_unet_is_taken(self) -> Self:
        if self.prediction_type_was is not None and "unet" not in self.networks:
            raise ValueError(
                f"prediction_type_was is {self.prediction_type_was!r}, but networks leaves the unet out, which alone "
                "predicts; leave one of them out"
            )
        return self


class LoraConfig(Section):
    """Low-rank adaptation of the attention projections of the `trainable` networks (Hu et al. 2021, arXiv 2106.09685).

    A weight W becomes W + alpha / rank * up @ down. Only up and down learn.
    """

    rank: Positive = 4
    """Inner dimension of up @ down, at most the smaller side of each adapted matrix. 4 is MindONE's default."""

    alpha: AboveZero | None = None
    """Numerator of the scale alpha / rank. null takes `rank`, so that the scale is 1."""

    @property
    def scale(self) -> float:
        """Factor of the product up @ down."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
