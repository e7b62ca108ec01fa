"""The networks' shapes, as the training document tells them. Imports no MindSpore."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import AboveZero

# A record is a stranger's file: without bounds the names of its tensors alone would fill the memory.
Width = Annotated[int, Field(gt=0, le=1 << 16)]
Depth = Annotated[int, Field(gt=0, le=128)]
Multipliers = Annotated[tuple[Depth, ...], Field(min_length=1, max_length=8)]
Network = Literal["unet", "text_encoder", "vae"]


class UNetConfig(Section):
    """The UNet's width and depth; the defaults are those of Stable Diffusion 2.x."""

    in_channels: Width = 4
    model_channels: Width = 320
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    res_blocks: Depth = 2
    attention_levels: tuple[int, ...] = (0, 1, 2)
    head_channels: Width = 64
    context_channels: Width = 1024
    norm_groups: Width = 32

    @model_validator(mode="after")
    def widths_divide(self) -> Self:
        for multiplier in self.channel_multipliers:
            width = multiplier * self.model_channels
            for name, divisor in (("norm_groups", self.norm_groups), ("head_channels", self.head_channels)):
                if width % divisor:
                    raise ValueError(f"a level is {width} channels wide, not divisible by {name} {divisor}")
        unknown = set(self.attention_levels) - set(range(len(self.channel_multipliers)))
        if unknown:
            raise ValueError(f"attention_levels {sorted(unknown)} are not levels of channel_multipliers")
        return self


class TextEncoderConfig(Section):
    """The text tower's width and depth; the defaults are OpenCLIP ViT-H's without its last block ("penultimate").

    `padding` follows the end token: "zero" as in open_clip, with which SD2 was trained; "end" repeats the end token, as
    MindONE did from 2024 on.
    """

    width: Width = 1024
    heads: Width = 16
    layers: Depth = 23
    context_length: Annotated[int, Field(ge=3, le=77)] = 77
    vocabulary_size: Literal[49408] = 49408
    padding: Literal["zero", "end"] = "zero"


class VaeConfig(Section):
    """The autoencoder's width and depth; the defaults are those of Stable Diffusion.

    `scale` multiplies its latents, so that they have about unit variance (Rombach et al. 2022, section D.1).
    """

    latent_channels: Width = 4
    channels: Width = 128
    channel_multipliers: Multipliers = (1, 2, 4, 4)
    res_blocks: Depth = 2
    norm_groups: Width = 32
    scale: AboveZero = 0.18215

    @model_validator(mode="after")
    def groups_divide(self) -> Self:
        if self.channels % self.norm_groups:
            raise ValueError(f"channels {self.channels} is not divisible by norm_groups {self.norm_groups}")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class ModelConfig(Section):
    """The networks; the defaults are those of Stable Diffusion 2.0 and 2.1, base and 768-v alike.

    With `vae: null` the UNet works on pixels, of which `space_to_depth` folds f x f into channels (the demo).
    """

    space_to_depth: Depth = 1
    unet: UNetConfig = UNetConfig()
    text_encoder: TextEncoderConfig = TextEncoderConfig()
    vae: VaeConfig | None = VaeConfig()

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that this model has."""
        return ("unet", "text_encoder", "vae") if self.vae else ("unet", "text_encoder")

    @property
    def pixels_per_latent(self) -> int:
        """Pixels per latent pixel, along each side."""
        return self.vae.downsampling if self.vae else self.space_to_depth

    @model_validator(mode="after")
    def shapes_agree(self) -> Self:
        if self.vae and self.space_to_depth != 1:
            raise ValueError(f"space_to_depth is {self.space_to_depth}, but there is a vae; set vae: null for pixels")
        channels = self.vae.latent_channels if self.vae else 3 * self.space_to_depth**2
        if self.unet.in_channels != channels:
            source = "vae.latent_channels" if self.vae else "space_to_depth"
            raise ValueError(f"unet.in_channels is {self.unet.in_channels}; {source} needs {channels}")
        if self.unet.context_channels != self.text_encoder.width:
            raise ValueError(
                f"unet.context_channels is {self.unet.context_channels}, "
                f"but text_encoder.width is {self.text_encoder.width}"
            )
        return self
