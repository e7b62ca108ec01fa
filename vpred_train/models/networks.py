"""The networks of one model, built from a configuration, and their parameters as one flat float32 space."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, nn

from launcher.contract.accelerators import ComputeDtype
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.model_config import ModelConfig, Network
from vpred_train.models.autoencoder_kl import AutoencoderKL
from vpred_train.models.text_encoder import TextEncoder
from vpred_train.models.unet import UNet

NO_DECAY_NAMES = ("embedding",)


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


@dataclass(frozen=True)
class Span:
    """One parameter's place in the flat space: elements [start, stop)."""

    name: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def decays(self) -> bool:
        """Weight decay is for matrices and kernels: not for norms, biases and embeddings."""
        return len(self.shape) > 1 and not any(word in self.name for word in NO_DECAY_NAMES)


class FlatSpace:
    """The trainable parameters of a network, in a fixed order, as one 1-D float32 space.

    `parts`: take only those below these members of the network, e.g. ("unet",); all when empty.
    """

    def __init__(self, network: nn.Cell, parts: Sequence[str] = ()) -> None:
        prefixes = tuple(f"{part}." for part in parts) or ("",)
        named = [
            (name, item)
            for name, item in network.parameters_and_names()
            if item.requires_grad and name.startswith(prefixes)
        ]
        self.parameters = [parameter for _, parameter in named]
        stops = np.cumsum([parameter.size for parameter in self.parameters]).tolist()
        self.spans = tuple(
            Span(name, tuple(parameter.shape), stop - parameter.size, stop)
            for (name, parameter), stop in zip(named, stops, strict=True)
        )
        self.shapes = {span.name: span.shape for span in self.spans}
        self.size = stops[-1]

    def read(self) -> FloatArray:
        """A copy of the parameters' values, (size,) float32."""
        return np.concatenate([parameter.asnumpy().reshape(-1) for parameter in self.parameters])

    def flatten(self) -> FloatArray:
        """The parameters' values, (size,) float32, moved one by one into one array: where the device computes in host
        memory the parameters share it from now on, so that it is the only copy."""
        values = np.empty(self.size, np.float32)
        for parameter, view in zip(self.parameters, self.views(values).values(), strict=True):
            np.copyto(view, parameter.asnumpy())
            parameter.set_data(Tensor.from_numpy(view))
        return values

    def write(self, values: FloatArray) -> None:
        """Set the parameters from `values` (size,) float32."""
        for parameter, span in zip(self.parameters, self.spans, strict=True):
            parameter.set_data(Tensor.from_numpy(values[span.start : span.stop].reshape(span.shape)))

    def views(self, values: FloatArray) -> dict[str, np.ndarray[Any, Any]]:
        """`values` (size,) as named tensors that share its memory."""
        return {span.name: values[span.start : span.stop].reshape(span.shape) for span in self.spans}
