"""The recipe's section on what the loss asks for."""

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
    """What the loss asks for, and how timesteps and noise are drawn.

    `weight` of a timestep (`vpred_train/diffusion/weighting.py`): uniform is 1 on whatever the network predicts; the
    others are the same objective for any prediction type. `gamma` is that of min_snr (default 5), soft_min_snr (5) or
    p2 (1). `terminal_floor` is the least weight of |x - x0|^2: 1 is uniform v's at zero SNR, where the weights that
    take it would vanish. `offset_noise`: deviation of a noise that a whole channel shares (0.1 is usual).
    `input_perturbation`: noise added to the network's input alone, as a share of the noise (0.1).
    Timesteps t = 0 .. T-1: logit_normal draws t / T = sigmoid(n), n ~ N(`logit_mean`, `logit_std`^2), above 0 for more
    noise; with `stratified_timesteps` a global batch has one draw in each of its equal shares of the distribution.
    """

    weight: Weight = "uniform"
    gamma: AboveZero | None = None
    terminal_floor: Fraction | None = None
    offset_noise: NotNegative = 0.0
    input_perturbation: NotNegative = 0.0
    timestep_distribution: Literal["uniform", "logit_normal"] = "uniform"
    logit_mean: Annotated[float, Field(ge=-100, le=100)] = 0.0
    logit_std: AboveZero = 1.0
    stratified_timesteps: bool = False

    @model_validator(mode="after")
    def every_key_has_a_reader(self) -> Self:
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
