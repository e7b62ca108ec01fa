"""The recipe's section on sampling."""

from typing import Literal, Self

from pydantic import model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import Fraction, ImageSeed, NotNegative, Positive


class SamplingConfig(Section):
    """How images are made: previews, the samples at the end of a run, and those of `vpred-sample`."""

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
    """Solver of the reverse process. dpmpp_2m (Lu et al. 2022, arXiv 2211.01095) needs few steps."""

    eta: Fraction = 0.0
    """Share of fresh noise in each step of ddim. 0 is deterministic, 1 is DDPM (Song et al. 2020, arXiv 2010.02502)."""

    timestep_spacing: Literal["trailing", "leading", "linspace", "karras"] = "trailing"
    """Choice of the visited timesteps. "trailing" always starts at the noisiest (Lin et al. 2023, arXiv 2305.08891).
    "karras" follows Karras et al. 2022 (arXiv 2206.00364)."""

    steps: Positive = 15
    """Number of steps, at most `diffusion.timesteps`. 15 is what MindONE's guide for v-prediction takes."""

    guidance_scale: NotNegative = 3.0
    """Scale of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598). 1 is the conditional model alone.
    The SD2 recipes take 7.5."""

    guidance_rescale: Fraction = 0.0
    """Pull a guided prediction back to the conditional one's standard deviation (Lin et al. 2023, equations 15 and 16).
    0 is off, 0.7 is the paper's."""

    batch_size: Positive = 16
    """Number of images that one rank samples at a time. The UNet sees twice as many, for guidance."""

    seed: ImageSeed = 42
    """Seed of the first image; the others count up from it."""

    @model_validator(mode="after")
    def _check_eta_is_read(self) -> Self:
        if self.eta > 0 and self.sampler != "ddim":
            raise ValueError(f"eta is {self.eta}, but {self.sampler} has none; leave it 0 or use ddim")
        return self
