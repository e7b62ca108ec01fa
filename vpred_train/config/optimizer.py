"""The recipe's sections on the optimiser, the learning rate and the moving averages."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import MAY_CHANGE, Section
from vpred_train.config.numbers import AboveZero, AboveZeroOrInfinite, NotNegative, Positive, Samples

Length = Annotated[int, Field(ge=0, le=1 << 53)]  # in samples or steps
Beta = Annotated[float, Field(ge=0, lt=1)]
# Below 0.288 a power-function profile has an exponent above 0: late weights count more than early ones.
SIGMA_REL_MAX = 0.28
SigmaRel = Annotated[float, Field(gt=0, le=SIGMA_REL_MAX)]

ADAMS = ("adamw", "adam_weight_decay")
DEVICE_OPTIMIZERS = (*ADAMS, "sgd")  # the device engine has these update rules


def refuse_unread(section: Section, chosen: Collection[str], readers: Mapping[str, Collection[str]]) -> None:
    """Raise ValueError for a key that is not at its default while none of its `readers` is among the `chosen`."""
    for key, names in readers.items():
        value, default = getattr(section, key), type(section).model_fields[key].default
        if value != default and not set(names) & set(chosen):
            raise ValueError(
                f"{key} is {value}, but {' and '.join(chosen)} has none; leave it {default} or use {' or '.join(names)}"
            )


class OptimizerConfig(Section):
    """The optimiser, and clipping of the gradient before it."""

    name: Literal["adamw", "adam_weight_decay", "sgd"] = "adamw"
    """Update rule: "adamw" (Loshchilov & Hutter 2019, arXiv 1711.05101), "sgd" with momentum, or "adam_weight_decay".
    The last is MindSpore's and MindONE's AdamW, without bias correction."""

    learning_rate: AboveZero
    """Highest learning rate, which the warm-up reaches. `schedule` decides how it falls."""

    reference_batch: Positive | None = None
    """Global batch for which the learning rates are meant. null takes them as given.
    They are multiplied by global_batch / reference_batch (Goyal et al. 2017, arXiv 1706.02677)."""

    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """Decay of Adam's first and second moment per step. PyTorch's and MindONE's defaults."""

    epsilon: AboveZero = 1e-8
    """Adam's term against division by zero. 1e-8 is PyTorch's default; MindONE's adam_weight_decay takes 1e-6."""

    momentum: Beta = 0.0
    """Momentum of sgd per step. 0 keeps no moment; MindONE takes 0.9."""

    weight_decay: NotNegative = 0.01
    """Decoupled weight decay; for sgd it goes into the gradient. Norms, biases and embeddings do not decay.
    0.01 is PyTorch's default for AdamW and MindONE's recipe."""

    max_grad_norm: AboveZeroOrInfinite = 1.0
    """Upper bound of the gradient's global norm (Pascanu et al. 2013). .inf clips nothing. 1.0 is MindONE's value."""

    @model_validator(mode="after")
    def _check_keys_are_read_by_optimizer(self) -> Self:
        refuse_unread(self, (self.name,), {"betas": ADAMS, "epsilon": ADAMS, "momentum": ("sgd",)})
        return self

    @property
    def moment_names(self) -> tuple[str, ...]:
        """Names of the arrays that the optimiser keeps between steps, each as large as the weights."""
        if self.name in ADAMS:
            return ("adam_m", "adam_v")
        return ("sgd_momentum",) if self.momentum else ()


class ScheduleConfig(Section):
    """The learning rate over the run. Lengths are in samples or in optimiser steps of the global batch, not in both."""

    name: Literal["constant", "cosine", "polynomial", "multi_step"] = "cosine"
    """Shape after the warm-up. "cosine" is Loshchilov & Hutter 2017 (arXiv 1608.03983) without restarts.
    A run can be made longer with "constant" and "multi_step" only."""

    warmup_samples: Length | None = None
    """Samples over which the learning rate rises linearly from 0. null and 0 start at `optimizer.learning_rate`."""

    warmup_steps: Length | None = None
    """The same in steps, in place of `warmup_samples`."""

    final_learning_rate: NotNegative = 0.0
    """Learning rate at the end of the run, for cosine and polynomial."""

    power: AboveZero = 1.0
    """Exponent of polynomial: the rate falls as (1 - progress)^power. 1 is linear."""

    milestones_samples: tuple[Samples, ...] = ()
    """Samples after which multi_step multiplies the learning rate by `factor`, in rising order."""

    milestones_steps: tuple[Samples, ...] = ()
    """The same in steps, in place of `milestones_samples`."""

    factor: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Factor of the learning rate at each milestone. 0.1 is PyTorch's default for MultiStepLR."""

    @model_validator(mode="after")
    def _check_keys_are_read_by_schedule(self) -> Self:
        steps = ("multi_step",)
        refuse_unread(
            self,
            (self.name,),
            {
                "final_learning_rate": ("cosine", "polynomial"),
                "power": ("polynomial",),
                "milestones_samples": steps,
                "milestones_steps": steps,
                "factor": steps,
            },
        )
        return self

    @model_validator(mode="after")
    def _check_lengths_and_milestones(self) -> Self:
        for what in ("warmup", "milestones"):
            in_samples, in_steps = getattr(self, f"{what}_samples"), getattr(self, f"{what}_steps")
            if in_samples not in (None, ()) and in_steps not in (None, ()):
                raise ValueError(f"{what}_samples is {in_samples} and {what}_steps is {in_steps}; give one of them")
        for key in ("milestones_samples", "milestones_steps"):
            given = getattr(self, key)
            if list(given) != sorted(set(given)):
                raise ValueError(f"{key} is {list(given)}; give each once, in rising order")
        if self.name == "multi_step" and not self.milestones_samples + self.milestones_steps:
            raise ValueError("multi_step has no milestones; give milestones_samples or milestones_steps")
        return self

    @property
    def is_extendable(self) -> bool:
        """Whether the learning rates of a run stay the same when it gets longer."""
        return self.name in ("constant", "multi_step")

    def warmup(self, global_batch: int) -> int:
        """The length of the warm-up in samples."""
        return self.warmup_samples or (self.warmup_steps or 0) * global_batch

    def milestones(self, global_batch: int) -> tuple[int, ...]:
        """Samples after which the learning rate falls."""
        return self.milestones_samples or tuple(step * global_batch for step in self.milestones_steps)

    def check_lengths(self, global_batch: int, total_samples: int) -> None:
        """Raise ValueError for a warm-up or a milestone that is not over before the run is."""
        totals = {"samples": total_samples, "steps": total_samples // global_batch}
        for unit, total in totals.items():
            found = {
                f"warmup_{unit}": getattr(self, f"warmup_{unit}") or 0,
                f"milestones_{unit}": max(getattr(self, f"milestones_{unit}"), default=0),
            }
            for key, length in found.items():
                if length >= total:
                    raise ValueError(f"schedule.{key} {length} is not below the run's {total} {unit}; make it shorter")


class EmaConfig(Section):
    """Moving averages of the weights, tracked side by side in float32. Skipped steps do not advance them."""

    profiles: Annotated[tuple[Literal["constant", "mindone", "power"], ...], Field(min_length=1)] = ("constant",)
    """Decay after n updates: "constant" min(decay, (1 + n) / (10 + n)), "mindone" decay (1 - exp(-n / 2000)).
    "power" gives the weights at time t the weight t^gamma (Karras et al. 2024, arXiv 2312.02696)."""

    decay: Beta = 0.9999
    """Share of the average that stays at each update, for constant and mindone.
    0.9999 is MindONE's; 0 averages nothing."""

    sigma_rel: Annotated[tuple[SigmaRel, ...], Field(min_length=1)] = (0.05, 0.1)
    """Widths of the power averages, in units of the training time. Each width is one average.
    Karras et al. 2024 track 0.05 and 0.1."""

    use: Annotated[str | None, MAY_CHANGE] = None
    """The average that samples and weights/ema.safetensors take: constant, mindone or power_WIDTH.
    null takes the first."""

    snapshot_every_samples: Annotated[Samples | None, MAY_CHANGE] = None
    """Keep the power averages in RUN/snapshots after each multiple of this many samples, and at the end.
    `vpred-ema` makes other widths from them. null keeps none."""

    snapshot_dtype: Annotated[Literal["float16", "float32"], MAY_CHANGE] = "float16"
    """Type of the snapshots. float16 halves the files and rounds by at most 0.05 %, or 3e-8 for values below 6e-5."""

    @model_validator(mode="after")
    def _check_keys_agree(self) -> Self:
        power = ("power",)
        refuse_unread(
            self,
            self.profiles,
            {"decay": ("constant", "mindone"), "sigma_rel": power, "snapshot_every_samples": power},
        )
        for key in ("profiles", "sigma_rel"):
            given = getattr(self, key)
            if len(set(given)) < len(given):
                raise ValueError(f"{key} is {list(given)}; give each once")
        if self.use is not None and self.use not in self.names:
            raise ValueError(f"use is {self.use!r}; tracked are {', '.join(self.names)}")
        if self.snapshot_every_samples and len(self.sigma_rel) == 1:
            raise ValueError(f"sigma_rel is {list(self.sigma_rel)}; snapshots are worth keeping from two widths on")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The averages' names: constant, mindone, power_0.05 ..."""
        return tuple(
            name
            for profile in self.profiles
            for name in (map(power_name, self.sigma_rel) if profile == "power" else (profile,))
        )

    @property
    def used(self) -> str:
        """The name of the average that the final samples take."""
        return self.use or self.names[0]


def power_name(sigma_rel: float) -> str:
    """The name of a power-function average, such as power_0.05."""
    return f"power_{sigma_rel:g}"


def component_of(average: str) -> str:
    """The component of a checkpoint that holds the average of that name; a component's name has no dots."""
    return f"ema_{average.replace('.', '_')}"
