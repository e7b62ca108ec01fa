"""The recipe's section on the loss."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import AboveZero, Fraction, NotNegative

Weight = Literal[
    "uniform", "uniform_v", "eps_simple", "x0_simple", "snr_trunc", "min_snr", "soft_min_snr", "debiased", "p2"
]
READ_GAMMA: tuple[Weight, ...] = ("min_snr", "soft_min_snr", "p2")
VANISH_AT_ZERO_SNR: tuple[Weight, ...] = ("eps_simple", "min_snr", "soft_min_snr", "debiased", "p2")


class ObjectiveConfig(Section):
    """The loss, and how timesteps and noise are drawn. The defaults are SD2's: uniform in all respects."""

    weight: Weight = "uniform"
    """Loss weight of a timestep; `vpred_train/diffusion/weighting.py` cites the papers. "uniform" weighs all alike.
    The others are the same objective for every prediction type."""

    gamma: AboveZero | None = None
    """Parameter of min_snr, soft_min_snr and p2. null takes 5, 5 and 1, in this order."""

    terminal_floor: Fraction | None = None
    """Lower bound of the weight of |x - x0|^2, for weights that vanish at zero SNR.
    Such a weight needs it with `zero_terminal_snr`. 1 is uniform_v's weight there, 0 none."""

    offset_noise: NotNegative = 0.0
    """Standard deviation of extra noise that all pixels of a channel share (Guttenberg 2023).
    0.1 is usual; 0 is off, as in SD2."""

    input_perturbation: NotNegative = 0.0
    """Extra noise in the network's input alone, in units of the noise (Ning et al. 2023, arXiv 2301.11706).
    0.1 is the paper's; 0 is off, as in SD2."""

    timestep_distribution: Literal["uniform", "logit_normal"] = "uniform"
    """Distribution of the timesteps t. "uniform" is SD2's.
    "logit_normal" draws t / T = sigmoid(n) with n normal (Esser et al. 2024, arXiv 2403.03206)."""

    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    """Mean of n for logit_normal. A mean above 0 draws more noise; 0 centres the timesteps on T / 2."""

    logit_std: AboveZero = 1.0
    """Standard deviation of n for logit_normal. 1 with mean 0 is the best setting of Esser et al. 2024."""

    stratified_timesteps: bool = False
    """Draw one timestep from each of `global_batch` equal shares of the distribution, so that every batch covers it."""

    @model_validator(mode="after")
    def _check_keys_are_read(self) -> Self:
        for key, readers in (("gamma", READ_GAMMA), ("terminal_floor", VANISH_AT_ZERO_SNR)):
            if getattr(self, key) is not None and self.weight not in readers:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but weight {self.weight} has none; "
                    f"leave it out or use {', '.join(readers)}"
                )
        for key, default in (("logit_mean", 0.0), ("logit_std", 1.0)):
            if self.timestep_distribution != "logit_normal" and getattr(self, key) != default:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but timestep_distribution is {self.timestep_distribution}; "
                    "leave it out or use logit_normal"
                )
        return self
