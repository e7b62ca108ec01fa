"""The dtype in which the networks compute, and the loss scale that keeps small gradients of float16. No MindSpore."""

import math
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from launcher.contract.accelerators import Accelerator, ComputeDtype
from launcher.contract.config import ConfigError, Section
from vpred_train.config.numbers import Samples
from vpred_train.config.optimizer import refuse_unread

MAX_LOSS_SCALE = 2.0**24  # gradients that need more do not train; without a bound a gradient of 0 would let it run off


def power_of_two(value: float) -> float:
    """`value`, where it is one: multiplying by it rounds nothing. Raises ValueError otherwise."""
    if math.frexp(value)[0] != 0.5:
        raise ValueError(f"must be a power of two, which rounds nothing; give {2.0 ** round(math.log2(value)):g}")
    return value


Scale = Annotated[float, Field(ge=1, le=MAX_LOSS_SCALE), AfterValidator(power_of_two)]
Factor = Annotated[float, Field(ge=2, le=MAX_LOSS_SCALE), AfterValidator(power_of_two)]


class PrecisionConfig(Section):
    """Mixed precision (Micikevicius et al. 2018, arXiv 1710.03740).

    Weights, moments, averages, norms, softmax and loss are float32 in any case.
    """

    compute_dtype: Literal["auto", ComputeDtype] = "auto"
    """Type of linear maps, convolutions, attention and activations. "auto": float32 on cpu, bfloat16 on ascend.
    It lets a recipe move between clusters as it is."""

    loss_scaling: Literal["auto", "off", "static", "dynamic"] = "auto"
    """Multiply the loss before the backward pass, and divide the gradients after it. "dynamic" adapts the scale.
    "auto" is dynamic with float16 and off otherwise, since the other types have float32's range."""

    init_loss_scale: Scale = 65536.0
    """The static scale, or the first dynamic one. A power of two, which rounds nothing. 65536 is MindONE's."""

    min_loss_scale: Scale = 1.0
    """Lower bound of a dynamic scale, a power of two. 1 leaves the loss as it is."""

    loss_scale_factor: Factor = 2.0
    """Divide a dynamic scale by this after an overflow, whose step is skipped. A power of two. 2 is MindONE's."""

    loss_scale_window_steps: Samples = 1000
    """Multiply a dynamic scale by the factor after this many updates without an overflow. 1000 is MindONE's."""

    @model_validator(mode="after")
    def _check_keys_agree(self) -> Self:
        dynamic = ("dynamic",)
        refuse_unread(
            self,
            (self._scaling_with(self.compute_dtype),),
            {
                "init_loss_scale": ("static", "dynamic"),
                "min_loss_scale": dynamic,
                "loss_scale_factor": dynamic,
                "loss_scale_window_steps": dynamic,
            },
        )
        if self.init_loss_scale < self.min_loss_scale:
            raise ValueError(
                f"init_loss_scale {self.init_loss_scale:g} is below min_loss_scale {self.min_loss_scale:g}; "
                "give at least that"
            )
        return self

    def on(self, accelerator: Accelerator) -> Self:
        """The same without "auto". Raises ConfigError for a dtype in which the accelerator does not compute."""
        known = accelerator.compute_dtypes
        dtype = known[0] if self.compute_dtype == "auto" else self.compute_dtype
        if dtype not in known:
            raise ConfigError(
                f"precision.compute_dtype: found {dtype!r}, in which accelerator {accelerator.name} does not compute "
                f"(known: {', '.join(known)}); give one of these, or auto"
            )
        return self.model_copy(update={"compute_dtype": dtype, "loss_scaling": self._scaling_with(dtype)})

    @property
    def dtype(self) -> ComputeDtype:
        """`compute_dtype` of a section that `on` has returned."""
        if self.compute_dtype == "auto":
            raise ValueError("compute_dtype is auto, and the accelerator that decides it is unknown")
        return self.compute_dtype

    def _scaling_with(self, dtype: str) -> str:
        """`loss_scaling` without "auto"; a `dtype` of "auto" may become float16."""
        if self.loss_scaling != "auto":
            return self.loss_scaling
        return "dynamic" if dtype in ("float16", "auto") else "off"
