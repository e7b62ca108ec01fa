"""From prompts to images with a trained model."""

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from vpred_train.config import DiffusionConfig, ModelConfig, SamplingConfig
from vpred_train.diffusion.samplers import SAMPLERS, guided, trailing_timesteps
from vpred_train.diffusion.schedule import FloatArray, make_schedule
from vpred_train.models.autoencoder import SpaceToDepth
from vpred_train.models.networks import Networks
from vpred_train.models.tokenizer import Tokenizer


class TextToImage:
    """Samples images of one size. The networks are compiled once, for the configured batch."""

    def __init__(
        self,
        networks: Networks,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        sampling: SamplingConfig,
        resolution: int,
    ) -> None:
        self.networks, self.sampling = networks, sampling
        self.schedule = make_schedule(diffusion)
        self.timesteps = trailing_timesteps(diffusion.timesteps, sampling.steps)
        self.autoencoder = SpaceToDepth(model.space_to_depth)
        self.tokenizer = Tokenizer(model.text_encoder.context_length, model.text_encoder.padding)
        side = resolution // model.space_to_depth
        self.latent_shape = (model.unet.in_channels, side, side)

    def generate(self, prompts: list[str], seeds: list[int]) -> FloatArray:
        """One image for each prompt and seed: (n, 3, R, R) float32 in [-1, 1]. An image depends on nothing else."""
        size = self.sampling.batch_size
        images = [
            self._generate_batch(prompts[start : start + size], seeds[start : start + size])
            for start in range(0, len(prompts), size)
        ]
        return np.concatenate(images) if images else np.empty((0, 3, 0, 0), np.float32)

    def _generate_batch(self, prompts: list[str], seeds: list[int]) -> FloatArray:
        # A short batch is filled up, so that the graph is compiled for one shape only.
        filler = self.sampling.batch_size - len(prompts)
        conditional = self._encode([*prompts, *[""] * filler])
        unconditional = self._encode([""] * self.sampling.batch_size)
        context = ops.concat((unconditional, conditional), 0)
        noise = np.stack([self._noise(seed) for seed in [*seeds, *[0] * filler]])

        def model(z: FloatArray, t: int) -> FloatArray:
            both = Tensor(np.concatenate((z, z)))
            timesteps = Tensor(np.full(len(both), t, np.float32))
            v = self.networks.unet(both, timesteps, context).asnumpy()
            return guided(v[len(z) :], v[: len(z)], np.float32(self.sampling.guidance_scale))

        latents = SAMPLERS[self.sampling.sampler](model, noise, self.schedule, self.timesteps)
        return np.clip(self.autoencoder.decode(latents[: len(prompts)]), -1, 1)

    def _encode(self, prompts: list[str]) -> Tensor:
        return self.networks.text_encoder(Tensor(self.tokenizer(prompts)))

    def _noise(self, seed: int) -> FloatArray:
        return np.random.default_rng(seed).standard_normal(self.latent_shape, np.float32)


def to_uint8(images: FloatArray) -> NDArray[np.uint8]:
    """(n, 3, H, W) in [-1, 1] -> (n, H, W, 3) uint8, rounded."""
    return np.rint((images.transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)
