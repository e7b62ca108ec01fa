"""The training document: what is trained, independent of where. Imports no MindSpore, so it is checked anywhere."""

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from checkpoints_mgr import Retention
from data import DataConfig
from launcher.contract.config import FIXED, MAY_CHANGE, OF_THE_MACHINE, Section
from vpred_train.config_numbers import AboveZero, Fraction, ImageSeed, NotNegative, Positive, Samples, Seed
from vpred_train.model_config import ModelConfig, Network
from vpred_train.objective_config import VANISH_AT_ZERO_SNR, ObjectiveConfig
from vpred_train.optim_config import EmaConfig, OptimizerConfig, ScheduleConfig
from vpred_train.precision import PrecisionConfig
from vpred_train.validation_config import PreviewsConfig, ValidationConfig

Beta = Annotated[float, Field(ge=1e-8, lt=1)]  # of a smaller one float32 would keep no noise
LEAST_LOG_ALPHA_BAR = -80.0  # float32 ends at -87
PredictionType = Literal["v", "eps", "x0"]


class DiffusionConfig(Section):
    """The noise schedule (scaled-linear, as SD2), and what the network predicts: v, noise (eps) or image (x0)."""

    timesteps: Positive = 1000
    beta_start: Beta = 0.00085
    beta_end: Beta = 0.012
    zero_terminal_snr: bool = False
    prediction_type: PredictionType = "v"

    @model_validator(mode="after")
    def noise_tells_something(self) -> Self:
        if self.zero_terminal_snr and self.prediction_type == "eps":
            raise ValueError(
                "prediction_type is 'eps' with zero_terminal_snr, where the noise says nothing about the image; use v"
            )
        if self.zero_terminal_snr and self.timesteps < 2:
            raise ValueError("timesteps is 1, and zero_terminal_snr moves all but the first; give 2 or more")
        return self

    @model_validator(mode="after")
    def the_end_keeps_something(self) -> Self:
        # Betas are linear in their square root, as in vpred_train/diffusion/schedule.py.
        first, last, intervals = math.sqrt(self.beta_start), math.sqrt(self.beta_end), max(1, self.timesteps - 1)
        roots = (first + (last - first) * t / intervals for t in range(self.timesteps))
        if sum(math.log1p(-root * root) for root in roots) < LEAST_LOG_ALPHA_BAR:
            raise ValueError(
                f"{self.timesteps} timesteps up to beta_end {self.beta_end} leave nothing of the image that float32 "
                "could hold; lower one of them"
            )
        return self


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


class CheckpointConfig(Section):
    """When to save, and what to keep.

    A save is due after each multiple of `every_samples`, after each `every_epochs` passes over the data,
    `every_minutes` after the last one, and when asked for. `background`: it is written while training goes on; if one
    is due before the last is written, `on_busy` says whether to wait for that or to skip the new one.
    `node_folder`: a folder of this run's own on each host's disks, which takes the place of RUN/checkpoints where hosts
    share none that are fast; a host keeps its ranks' part, and all hosts must be there again for a resume.
    Retention: the newest `keep_last`, the first of every `keep_every_samples`, the `keep_best` by held-out loss (of the
    average of `ema.use`, taken where validation and save fall together), and any step beside which lies an empty file
    STEP.keep.
    `mindone_unit_samples`: with each checkpoint, also write the average of `ema.use` as RUN/ckpt/sd-N.ckpt in MindONE's
    layout, where N counts units of so many samples (those of an epoch, or of a step); ten of them stay.
    """

    every_samples: Samples
    every_epochs: Samples | None = None
    every_minutes: AboveZero | None = None
    background: bool = True
    on_busy: Literal["wait", "skip"] = "wait"
    node_folder: Annotated[Path | None, FIXED] = None
    keep_last: Samples = 2
    keep_every_samples: Samples | None = None
    keep_best: Annotated[int, Field(ge=0, le=1 << 53)] = 0
    mindone_unit_samples: Samples | None = None

    def retention(self, global_batch: int) -> Retention:
        """What stays, in steps."""
        every_steps = None if self.keep_every_samples is None else max(1, self.keep_every_samples // global_batch)
        return Retention(self.keep_last, every_steps, self.keep_best, metric="validation_loss")


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


class TrainConfig(Section):
    """One training setup. The global batch is configured; the size per rank is derived from the world size.

    `gradient_accumulation_steps`: each rank takes its share in so many micro-batches, with one collective for all.
    `trainable`: the networks that learn, whole, or with `lora` through its factors alone. `zero_stage` 1: the
    optimiser's moments and the averages are sharded over the ranks; 0: each rank keeps all. `recompute` trades time
    for memory: the UNet's blocks are computed again in the backward pass. `final_samples`: how many training prompts
    to sample at the end, evenly spread over the data, or 0. `max_nonfinite_steps`: a step whose loss or gradient is not
    finite changes nothing; after so many in a row the run ends with exit code 76.
    """

    seed: Seed = 0
    total_samples: Annotated[Samples, MAY_CHANGE]
    global_batch: Positive
    gradient_accumulation_steps: Annotated[Positive, MAY_CHANGE] = 1
    log_every_steps: Annotated[Samples, MAY_CHANGE] = 1
    final_samples: Annotated[int, Field(ge=0, le=1 << 20), MAY_CHANGE] = 16
    max_nonfinite_steps: Annotated[Samples, MAY_CHANGE] = 3
    trainable: Annotated[tuple[Literal["unet", "text_encoder"], ...], Field(min_length=1)] = ("unet",)
    lora: LoraConfig | None = None
    zero_stage: Literal[0, 1] = 1
    recompute: Annotated[bool, MAY_CHANGE] = False
    data: DataConfig
    pretrained: PretrainedConfig | None = None
    model: ModelConfig = ModelConfig()
    diffusion: DiffusionConfig = DiffusionConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    precision: PrecisionConfig = PrecisionConfig()
    optimizer: OptimizerConfig
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig = EmaConfig()
    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE]
    sampling: Annotated[SamplingConfig, MAY_CHANGE] = SamplingConfig()
    validation: ValidationConfig | None = None
    previews: Annotated[PreviewsConfig | None, MAY_CHANGE] = None

    @model_validator(mode="after")
    def every_network_learns_or_is_given(self) -> Self:
        given = self.pretrained.networks if self.pretrained else ()
        learning = () if self.lora else self.trainable
        for network in self.model.networks:
            if network not in given and network not in learning:
                remedy = "set model.vae: null to work on pixels" if network == "vae" else "add it to trainable"
                if self.lora and network != "vae":
                    remedy = "leave lora out: its factors only adapt weights"
                raise ValueError(f"the {network} would stay random: give pretrained weights for it, or {remedy}")
        return self

    @model_validator(mode="after")
    def what_is_cached_is_frozen(self) -> Self:
        if self.data.cache is not None and "text_encoder" in self.trainable:
            raise ValueError("data.cache holds text features, but the text_encoder learns; leave out one of them")
        if self.data.cache is not None and self.model.vae is None:
            raise ValueError("data.cache holds what an autoencoder makes, but model.vae is null; leave out data.cache")
        return self

    @model_validator(mode="after")
    def the_last_timestep_has_a_weight(self) -> Self:
        objective = self.objective
        vanishes = objective.weight in VANISH_AT_ZERO_SNR and objective.terminal_floor is None
        if self.diffusion.zero_terminal_snr and vanishes:
            raise ValueError(
                f"objective.weight {objective.weight} is 0 where diffusion.zero_terminal_snr takes the SNR; "
                "set objective.terminal_floor (1: as uniform_v there, 0: none), or use another weight"
            )
        return self

    @model_validator(mode="after")
    def the_best_can_be_told(self) -> Self:
        if self.checkpoint.keep_best and not self.validation:
            raise ValueError(
                f"checkpoint.keep_best is {self.checkpoint.keep_best}, but nothing is held out to tell which is best; "
                "add validation"
            )
        return self

    @model_validator(mode="after")
    def every_bin_has_a_timestep(self) -> Self:
        if self.validation and self.validation.bins > self.diffusion.timesteps:
            raise ValueError(
                f"validation.bins {self.validation.bins} is above diffusion.timesteps {self.diffusion.timesteps}; "
                "give at most that"
            )
        return self

    @model_validator(mode="after")
    def clock_is_consistent(self) -> Self:
        if self.total_samples % self.global_batch:
            raise ValueError(
                f"total_samples {self.total_samples} is not a multiple of global_batch {self.global_batch}"
            )
        self.schedule.check_lengths(self.global_batch, self.total_samples)
        if self.data.resolution % self.model.pixels_per_latent:
            raise ValueError(
                f"data.resolution {self.data.resolution} is not divisible by {self.model.pixels_per_latent}, "
                "the pixels of one latent pixel"
            )
        buckets = self.data.buckets
        if buckets and buckets.multiple_px % self.model.pixels_per_latent:
            raise ValueError(
                f"data.buckets.multiple_px {buckets.multiple_px} is not divisible by {self.model.pixels_per_latent}, "
                "the pixels of one latent pixel"
            )
        return self

    @property
    def networks_in_training(self) -> tuple[Network, ...]:
        """The networks that must be there while the run trains: with a cache the UNet alone, unless it has previews."""
        return ("unet",) if self.data.cache is not None and self.previews is None else self.model.networks

    @property
    def total_steps(self) -> int:
        return self.total_samples // self.global_batch
