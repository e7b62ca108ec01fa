"""The training document: the setup without the cluster. Imports no MindSpore, so that any host can check it."""

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
    """One training setup, independent of the cluster. The ranks share `global_batch` equally."""

    seed: Seed = 0
    """Seed of order, crops, dropped captions, noise, timesteps and fresh weights."""

    total_samples: Annotated[Samples, MAY_CHANGE]
    """Length of the run in training samples, a multiple of `global_batch`."""

    global_batch: Positive
    """Number of samples of one optimiser step, over all ranks. A multiple of ranks x `gradient_accumulation_steps`."""

    gradient_accumulation_steps: Annotated[Positive, MAY_CHANGE] = 1
    """Number of micro-batches in which each rank computes its share of a step, to save memory.
    Gradients are reduced once per step."""

    log_every_steps: Annotated[Samples, MAY_CHANGE] = 1
    """Number of steps from one log line of loss, gradient norm, learning rate and speed to the next."""

    final_samples: Annotated[int, Field(ge=0, le=1 << 20), MAY_CHANGE] = 16
    """Number of captions to sample at the end of the run, evenly spread over the training data. 0 samples none."""

    max_nonfinite_steps: Annotated[Samples, MAY_CHANGE] = 3
    """The run ends with exit code 76 after this many steps in a row with a nonfinite loss or gradient.
    Such a step changes no weight. Overflows that lower a dynamic loss scale do not count."""

    trainable: Annotated[tuple[Literal["unet", "text_encoder"], ...], Field(min_length=1)] = ("unet",)
    """Networks that learn. SD2 was trained with a frozen text encoder."""

    lora: LoraConfig | None = None
    """Train low-rank factors of the `trainable` networks. null trains their weights."""

    zero_stage: Literal[0, 1] = 1
    """1 shards the optimiser's moments and the moving averages over the ranks; 0 keeps all of them on each rank.
    1 needs less memory (ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054)."""

    recompute: Annotated[bool, MAY_CHANGE] = False
    """Compute the UNet's blocks again in the backward pass (Chen et al. 2016, arXiv 1604.06174).
    A step then needs a fraction of the memory and about a third more time."""

    data: DataConfig
    """Images and captions, and how they become batches."""

    pretrained: PretrainedConfig | None = None
    """Weights to start from. null starts from random weights."""

    model: ModelConfig = ModelConfig()
    """Shapes of the networks. The default is SD2."""

    diffusion: DiffusionConfig = DiffusionConfig()
    """Noise schedule, and the quantity that the network predicts."""

    objective: ObjectiveConfig = ObjectiveConfig()
    """Loss weight, and how timesteps and noise are drawn."""

    precision: PrecisionConfig = PrecisionConfig()
    """Type in which the networks compute, and loss scaling."""

    optimizer: OptimizerConfig
    """Optimiser, learning rate and gradient clipping."""

    schedule: ScheduleConfig = ScheduleConfig()
    """How the learning rate changes over the run. The default is a cosine to 0 without a warm-up."""

    ema: EmaConfig = EmaConfig()
    """Moving averages of the weights."""

    checkpoint: Annotated[CheckpointConfig, MAY_CHANGE]
    """Times of checkpoints, and which of them stay."""

    sampling: Annotated[SamplingConfig, MAY_CHANGE] = SamplingConfig()
    """How images are sampled."""

    validation: ValidationConfig | None = None
    """Loss on held-out images. null holds none out."""

    previews: Annotated[PreviewsConfig | None, MAY_CHANGE] = None
    """Grids of samples while the run trains. null makes none."""

    @model_validator(mode="after")
    def _check_networks_learn_or_are_given(self) -> Self:
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
    def _check_cached_networks_are_frozen(self) -> Self:
        if self.data.cache is not None and "text_encoder" in self.trainable:
            raise ValueError("data.cache holds text features, but the text_encoder learns; leave out one of them")
        if self.data.cache is not None and self.model.vae is None:
            raise ValueError(
                "data.cache holds the moments of an autoencoder, but model.vae is null; leave out data.cache"
            )
        return self

    @model_validator(mode="after")
    def _check_last_timestep_has_weight(self) -> Self:
        objective = self.objective
        vanishes = objective.weight in VANISH_AT_ZERO_SNR and objective.terminal_floor is None
        if self.diffusion.zero_terminal_snr and vanishes:
            raise ValueError(
                f"objective.weight {objective.weight} is 0 at the last timestep, whose SNR is 0 with "
                "diffusion.zero_terminal_snr; set objective.terminal_floor (1: as uniform_v there, 0: none), or use "
                "another weight"
            )
        return self

    @model_validator(mode="after")
    def _check_best_has_validation(self) -> Self:
        if self.checkpoint.keep_best and not self.validation:
            raise ValueError(
                f"checkpoint.keep_best is {self.checkpoint.keep_best}, but no validation says which is best; "
                "add validation"
            )
        return self

    @model_validator(mode="after")
    def _check_bins_have_timesteps(self) -> Self:
        if self.validation and self.validation.bins > self.diffusion.timesteps:
            raise ValueError(
                f"validation.bins {self.validation.bins} is above diffusion.timesteps {self.diffusion.timesteps}; "
                "give at most that"
            )
        return self

    @model_validator(mode="after")
    def _check_sizes_divide(self) -> Self:
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
        """The networks that training needs. A run with a cache and without previews needs the UNet alone."""
        return ("unet",) if self.data.cache is not None and self.previews is None else self.model.networks

    @property
    def total_steps(self) -> int:
        return self.total_samples // self.global_batch
