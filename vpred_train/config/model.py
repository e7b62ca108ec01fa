"""The training document's section on the networks' shapes. Imports no MindSpore."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from launcher.contract.config import Section
from vpred_train.config.numbers import AboveZero

# Records come from strangers. Without bounds, the names of the tensors alone could fill the memory.
Width = Annotated[int, Field(gt=0, le=1 << 16)]
Depth = Annotated[int, Field(gt=0, le=128)]
Multipliers = Annotated[tuple[Depth, ...], Field(min_length=1, max_length=8)]
Network = Literal["unet", "text_encoder", "vae"]


class UNetConfig(Section):
    """The UNet's width and depth; the defaults are those of Stable Diffusion 2.x."""

    in_channels: Width = 4
    """Channels of input and output: `vae.latent_channels`, or 3 x `space_to_depth`^2 without a VAE. SD2: 4."""

    model_channels: Width = 320
    """Channels of the finest level before its multiplier. SD2: 320."""

    channel_multipliers: Multipliers = (1, 2, 4, 4)
    """Channels of each level, finest first, in units of `model_channels`. Each further level halves the sides.
    SD2: [1, 2, 4, 4]."""

    res_blocks: Depth = 2
    """Number of residual blocks at each level on the way down; one more on the way up. SD2: 2."""

    attention_levels: tuple[int, ...] = (0, 1, 2)
    """Levels with a spatial transformer after each residual block; 0 is the finest. The middle always has one.
    SD2: [0, 1, 2]."""

    head_channels: Width = 64
    """Channels of one attention head. Each level's width must be a multiple of it. SD2: 64."""

    context_channels: Width = 1024
    """Channels of the text features that cross-attention reads. Must equal `text_encoder.width`. SD2: 1024."""

    norm_groups: Width = 32
    """Number of groups of each group normalisation. Each level's width must be a multiple of it. SD2: 32."""

    @model_validator(mode="after")
    def _check_widths_and_levels(self) -> Self:
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
    """The text tower's width and depth; the defaults are those of OpenCLIP ViT-H/14, which SD2 reads."""

    width: Width = 1024
    """Channels of tokens and text features. ViT-H/14: 1024."""

    heads: Width = 16
    """Number of attention heads, each of width / heads channels. ViT-H/14: 16."""

    layers: Depth = 23
    """Number of transformer blocks. ViT-H/14 has 24, and SD2 leaves out the last one ("penultimate")."""

    context_length: Annotated[int, Field(ge=3, le=77)] = 77
    """Number of tokens of a caption, start and end token included; longer captions are cut. CLIP: 77."""

    vocabulary_size: Literal[49408] = 49408
    """Number of different tokens, which CLIP's vocabulary fixes."""

    padding: Literal["zero", "end"] = "zero"
    """Tokens after the end token. "zero" is open_clip's padding, with which SD2 was trained.
    "end" repeats the end token, as MindONE did from 2024 on."""


class VaeConfig(Section):
    """The autoencoder's width and depth; the defaults are those of Stable Diffusion."""

    latent_channels: Width = 4
    """Channels of the latents. Stable Diffusion: 4."""

    channels: Width = 128
    """Channels of the finest level before its multiplier. Stable Diffusion: 128."""

    channel_multipliers: Multipliers = (1, 2, 4, 4)
    """Channels of each level, finest first, in units of `channels`. n levels make one latent of 2^(n-1) pixels a side.
    Stable Diffusion: [1, 2, 4, 4], so 8 pixels."""

    res_blocks: Depth = 2
    """Number of residual blocks at each level of the encoder; the decoder has one more. Stable Diffusion: 2."""

    norm_groups: Width = 32
    """Number of groups of each group normalisation. `channels` must be a multiple of it. Stable Diffusion: 32."""

    scale: AboveZero = 0.18215
    """Factor of the latents that gives them about unit variance (Rombach et al. 2022, section D.1).
    0.18215 is Stable Diffusion's."""

    @model_validator(mode="after")
    def _check_groups_divide(self) -> Self:
        if self.channels % self.norm_groups:
            raise ValueError(f"channels {self.channels} is not divisible by norm_groups {self.norm_groups}")
        return self

    @property
    def downsampling(self) -> int:
        """Pixels per latent pixel, along each side."""
        return 2 ** (len(self.channel_multipliers) - 1)


class ModelConfig(Section):
    """The networks; the defaults are those of Stable Diffusion 2.0 and 2.1, base and 768-v alike."""

    space_to_depth: Depth = 1
    """Side f of the patches of pixels that become channels, for models without a VAE. 1 folds nothing.
    The demonstration takes 4."""

    unet: UNetConfig = UNetConfig()
    """The network that learns to remove noise. Default: SD2's."""

    text_encoder: TextEncoderConfig = TextEncoderConfig()
    """The network that turns captions into text features. Default: SD2's."""

    vae: VaeConfig | None = VaeConfig()
    """The autoencoder between images and latents. It never learns. null trains the UNet on pixels. Default: SD2's."""

    @property
    def networks(self) -> tuple[Network, ...]:
        """The networks that this model has."""
        return ("unet", "text_encoder", "vae") if self.vae else ("unet", "text_encoder")

    @property
    def pixels_per_latent(self) -> int:
        """Pixels per latent pixel, along each side."""
        return self.vae.downsampling if self.vae else self.space_to_depth

    @model_validator(mode="after")
    def _check_shapes_agree(self) -> Self:
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
