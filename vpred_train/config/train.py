"""The training document: what is trained, independent of where. Imports no MindSpore, so it is checked anywhere."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from data import DataConfig
from launcher.contract.config import MAY_CHANGE, Section
from vpred_train.config.checkpoint import CheckpointConfig
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig, Network
from vpred_train.config.numbers import Positive, Samples, Seed
from vpred_train.config.objective import VANISH_AT_ZERO_SNR, ObjectiveConfig
from vpred_train.config.optimizer import EmaConfig, OptimizerConfig, ScheduleConfig
from vpred_train.config.precision import PrecisionConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.config.validation import PreviewsConfig, ValidationConfig
from vpred_train.config.weights import LoraConfig, PretrainedConfig


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
