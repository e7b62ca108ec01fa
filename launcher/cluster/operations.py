"""Defines the cluster file's section on how the device computes the networks."""

from typing import Literal

from launcher.contract.config import Section


class OperationSettings(Section):
    """How the device computes the networks. "auto" takes the accelerator's first choice (see docs/ascend.md).

    These keys change speed and rounding, not what is trained. So they are here and not in the recipe.
    """

    jit_level: Literal["auto", "O0", "O1"] = "auto"
    """How MindSpore compiles graphs. "O0" runs kernel by kernel. "O1" also fuses kernels, for ascend alone.
    "auto": O0. MindSpore 2.10 calls O1 experimental."""

    convolution: Literal["auto", "mint", "ops"] = "auto"
    """Convolution of the networks. "mint" has a kernel of CANN's new interface (aclnn), for ascend alone.
    "ops" has one of the old interface, compiled for each shape. "auto": mint on ascend, ops on cpu."""

    layer_norm: Literal["auto", "mint", "ops"] = "auto"
    """Layer normalisation, with the same choices as `convolution`."""

    linear: Literal["auto", "mint", "ops"] = "auto"
    """Linear maps. "ops" adds the bias by a kernel of CANN's old interface. "auto": mint on ascend, ops on cpu."""

    indexing: Literal["auto", "mint", "ops"] = "auto"
    """Cuts, look-ups and means. The choices are those of `convolution`."""

    attention: Literal["auto", "flash", "composed"] = "auto"
    """Attention. "flash" is CANN's fused kernel, for ascend and half precision alone; it keeps no table of logits.
    "composed" is two matrix products and a softmax. "auto": flash on ascend, composed on cpu."""

    deterministic: bool = False
    """Kernels and collectives add up in a fixed order, so that a run can be repeated bit for bit. It is slower.
    cpu does so in any case."""

    @property
    def names(self) -> dict[str, str]:
        """Return the implementation of each kind of operation by its key."""
        return self.model_dump(exclude={"deterministic"})

    @property
    def trainer_options(self) -> list[str]:
        """Return the trainer's options for what differs from "auto"."""
        chosen = [(kind, name) for kind, name in self.names.items() if name != "auto"]
        options = [word for kind, name in chosen for word in ("--operation", f"{kind}={name}")]
        return [*options, "--deterministic"] if self.deterministic else options
