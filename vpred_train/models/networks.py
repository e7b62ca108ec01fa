"""Builds the networks of one model from a configuration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from launcher.contract.accelerators import ComputeDtype
from vpred_train.config.model import ModelConfig, Network
from vpred_train.models.autoencoder_kl import AutoencoderKL
from vpred_train.models.text_encoder import TextEncoder
from vpred_train.models.unet import UNet


class Networks(nn.Cell):
    """Holds the model's networks named in `parts`, with fresh weights; a model on pixels has no `vae`.

    Parameter names start with `unet.`, `text_encoder.` or `vae.` and continue with Stability's names.
    Parameters, inputs and outputs are float32; the networks compute in `compute_dtype`.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        compute_dtype: ComputeDtype = "float32",
        parts: Sequence[Network] = ("unet", "text_encoder", "vae"),
    ) -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.unet: Any = UNet(config.unet, rng, compute_dtype) if "unet" in parts else None
        self.text_encoder: Any = (
            TextEncoder(config.text_encoder, rng, compute_dtype) if "text_encoder" in parts else None
        )
        self.vae: Any = AutoencoderKL(config.vae, rng, compute_dtype) if config.vae and "vae" in parts else None

    def recompute_blocks(self) -> None:
        """Keep only the inputs of the UNet's blocks for the backward pass and compute the rest again.

        This needs a fraction of the memory and about a third more time (Chen et al. 2016, arXiv 1604.06174).
        """
        for block in (*self.unet.input_blocks, self.unet.middle_block, *self.unet.output_blocks):
            block.recompute()

    def construct(self, z_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """Return the prediction (B, C, H, W).

        z_t: (B, C, H, W).
        timesteps: (B,).
        text: token numbers (B, context_length), or their features from the text encoder (B, context_length, width).
        """
        features = text if text.ndim == 3 else self.text_encoder(text)
        return self.unet(z_t, timesteps, features)
