"""The recipe's section on the noise schedule and the predicted quantity."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import Positive

Beta = Annotated[float, Field(ge=1e-8, lt=1)]  # float32 would lose the noise of a smaller one
LEAST_LOG_ALPHA_BAR = -80.0  # float32 ends at -87
PredictionType = Literal["v", "eps", "x0"]


class DiffusionConfig(Section):
    """The noise schedule, with betas linear in their square root as in SD2, and the predicted quantity."""

    timesteps: Positive = 1000
    """Number of noise levels T. Timesteps are 0 to T - 1. 1000 is SD2's."""

    beta_start: Beta = 0.00085
    """Variance of the noise that the first timestep adds. 0.00085 is SD2's."""

    beta_end: Beta = 0.012
    """Variance of the noise that the last timestep adds. 0.012 is SD2's."""

    zero_terminal_snr: bool = False
    """Rescale the schedule so that the last timestep is pure noise (Lin et al. 2023, arXiv 2305.08891, algorithm 1).
    SD2 was trained without."""

    prediction_type: PredictionType = "v"
    """Quantity that the network predicts: v (Salimans & Ho 2022), the noise (eps) or the clean image (x0).
    SD2's 768-v weights predict v, its base weights eps."""

    @model_validator(mode="after")
    def _check_prediction_fits_zero_snr(self) -> Self:
        if self.zero_terminal_snr and self.prediction_type == "eps":
            raise ValueError(
                "prediction_type is 'eps' with zero_terminal_snr, where the noise says nothing about the image; use v"
            )
        if self.zero_terminal_snr and self.timesteps < 2:
            raise ValueError("timesteps is 1, and zero_terminal_snr moves all but the first; give 2 or more")
        return self

    @model_validator(mode="after")
    def _check_last_timestep_keeps_signal(self) -> Self:
        # Betas are linear in their square root, as in vpred_train/diffusion/schedule.py.
        first, last, intervals = math.sqrt(self.beta_start), math.sqrt(self.beta_end), max(1, self.timesteps - 1)
        roots = (first + (last - first) * t / intervals for t in range(self.timesteps))
        if sum(math.log1p(-root * root) for root in roots) < LEAST_LOG_ALPHA_BAR:
            raise ValueError(
                f"{self.timesteps} timesteps up to beta_end {self.beta_end} leave nothing of the image that float32 "
                "could hold; lower one of them"
            )
        return self
