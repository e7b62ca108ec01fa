"""How images are made."""

from typing import Literal, Self

from pydantic import model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import Fraction, ImageSeed, NotNegative, Positive


class SamplingConfig(Section):
    """How images are made at the end of a run and by `vpred-sample`. `eta` is DDIM's share of fresh noise."""

    sampler: Literal[
        "dpmpp_2m",
        "dpmpp_2m_sde",
        "dpm_solver_2",
        "unipc",
        "ddim",
        "euler",
        "euler_ancestral",
        "heun",
        "plms",
    ] = "dpmpp_2m"
    eta: Fraction = 0.0
    timestep_spacing: Literal["trailing", "leading", "linspace", "karras"] = "trailing"
    steps: Positive = 15
    guidance_scale: NotNegative = 3.0
    guidance_rescale: Fraction = 0.0
    batch_size: Positive = 16
    seed: ImageSeed = 42

    @model_validator(mode="after")
    def eta_has_a_reader(self) -> Self:
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, but {self.sampler} has none; leave it 0 or use ddim")
        return self
