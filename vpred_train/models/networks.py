"""The networks of one model, built from a configuration, and their parameters as one flat float32 space."""

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
    """UNet, text encoder and, where the model has one, autoencoder, with fresh weights; of them those in `parts`.

    Parameter names start with `unet.`, `text_encoder.` and `vae.`, and go on with Stability's. Parameters are float32;
    the networks compute in `compute_dtype` and take and give float32.
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
        """Keep only the inputs of the UNet's blocks for the backward pass and compute the rest again (Chen et al. 2016,
        arXiv 1604.06174): a fraction of the memory for about a third more time."""
        for block in (*self.unet.input_blocks, self.unet.middle_block, *self.unet.output_blocks):
            block.recompute()

    def construct(self, z_t: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        """(B, C, H, W), (B,), text -> the prediction (B, C, H, W). Text is token numbers (B, context_length), or the
        text encoder's features of them (B, context_length, width)."""
        features = text if text.ndim == 3 else self.text_encoder(text)
        return self.unet(z_t, timesteps, features)
