"""Turns prompts into images with a trained model."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import numpy as np
from mindspore import Tensor

from launcher.contract.config import ConfigError
from vpred_train.arrays import FloatArray
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.config.model import ModelConfig
from vpred_train.config.sampling import SamplingConfig
from vpred_train.diffusion.parameterization import ParameterizationRecord
from vpred_train.diffusion.samplers.registry import SAMPLERS, STOCHASTIC, guided, rescale_guidance
from vpred_train.diffusion.samplers.spacing import spaced_timesteps
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.distributed.collectives import Collective
from vpred_train.host_copies import to_host
from vpred_train.models.latents import make_latents
from vpred_train.models.networks import Networks
from vpred_train.models.weights import set_weights
from vpred_train.text.tokenizer import Tokenizer
from vpred_train.weights.layouts.weight_source import WeightSource
from vpred_train.weights.lora.files import LoraSource, with_lora
from vpred_train.weights.record_lookup import require_record


class NotFiniteError(ConfigError):
    """An image holds NaN or inf. It is refused, so that nobody takes it for a black image."""


class TextToImage:
    """Samples images of one size. The networks are compiled once, for the configured batch."""

    def __init__(
        self,
        networks: Networks,
        model: ModelConfig,
        diffusion: DiffusionConfig,
        sampling: SamplingConfig,
        height: int,
        width: int,
    ) -> None:
        self.networks, self.sampling = networks, sampling
        self.schedule = make_schedule(diffusion)
        self.prediction_type = diffusion.prediction_type
        self.timesteps = spaced_timesteps(sampling.timestep_spacing, self.schedule, sampling.steps)
        self.latents = make_latents(model, networks.vae)
        self.tokenizer = Tokenizer(model.text_encoder.context_length, model.text_encoder.padding)
        self.height, self.width = height, width
        scale = model.pixels_per_latent
        self.latent_shape = (model.unet.in_channels, height // scale, width // scale)

    @classmethod
    def from_weights(
        cls,
        weights: WeightSource,
        sampling: SamplingConfig,
        height: int,
        width: int,
        *,
        record: ParameterizationRecord | None = None,
        lora: LoraSource | None = None,
        lora_scale: float = 1.0,
    ) -> Self:
        """Make a pipeline for images of `height` by `width` pixels with the networks of `weights`.

        record: what the networks predict (default: what the weights declare, and their average where they have one)
        lora: weights whose change is added, multiplied by `lora_scale`
        Raises ConfigError: when nothing declares what the networks predict, or tensors do not fit or are not finite.
        """
        record = record or require_record(weights, lora=lora)
        networks = Networks(record.model, 0)
        set_weights(networks, with_lora(weights, record.weights, lora, lora_scale))
        return cls(networks, record.model, record.diffusion, sampling, height, width)

    def generate(
        self, prompts: Sequence[str], seeds: Sequence[int], negative_prompts: Sequence[str] = ()
    ) -> FloatArray:
        """Make one image for each prompt, seed and negative prompt (default: all empty). It depends on nothing else.

        Returns (n, 3, H, W) float32 in [-1, 1], with NaN where the networks' numbers were not finite.
        """
        if not prompts:
            return np.empty((0, 3, self.height, self.width), np.float32)
        features = self._encode([*prompts, *(negative_prompts or [""] * len(prompts))])
        conditional, negative = features[: len(prompts)], features[len(prompts) :]
        size = self.sampling.batch_size
        images = [
            self._generate_batch(conditional[start:][:size], negative[start:][:size], seeds[start:][:size])
            for start in range(0, len(prompts), size)
        ]
        return np.concatenate(images)

    def _generate_batch(self, conditional: FloatArray, negative: FloatArray, seeds: Sequence[int]) -> FloatArray:
        """Make images for conditional and negative text features, (n, tokens, width) each, and n seeds."""
        count = len(conditional)
        fill = self.sampling.batch_size - count  # a short batch is filled up: one shape, one compilation
        halves = [np.concatenate((half, half[:1].repeat(fill, 0))) for half in (negative, conditional)]
        context = Tensor(np.concatenate(halves))
        seeds = [*seeds, *[0] * fill]
        noise = np.stack([self._noise(seed) for seed in seeds])

        def model(z: FloatArray, t: float) -> FloatArray:
            both = Tensor(np.concatenate((z, z)))
            timesteps = Tensor(np.full(len(both), t, np.float32))
            prediction = to_host(self.networks.unet(both, timesteps, context))
            mixed = guided(prediction[len(z) :], prediction[: len(z)], np.float32(self.sampling.guidance_scale))
            return rescale_guidance(mixed, prediction[len(z) :], self.sampling.guidance_rescale)

        sample = SAMPLERS[self.sampling.sampler]
        latents = sample(model, noise, self.schedule, self.timesteps, self.prediction_type, **self._options(seeds))
        images = self.latents.decode(latents[:count])
        return np.where(np.isfinite(images), np.clip(images, -1, 1), np.float32(np.nan))

    def _options(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Return this sampler's arguments beyond the common ones."""
        options: dict[str, Any] = {}
        if self.sampling.sampler in STOCHASTIC:
            options["noise"] = partial(step_noise, seeds)
        if self.sampling.sampler == "ddim":
            options["eta"] = self.sampling.eta
        return options

    def _encode(self, prompts: Sequence[str]) -> FloatArray:
        """Return the prompts' text features, (n, tokens, width). Each distinct prompt is encoded once."""
        size = self.sampling.batch_size
        different = list(dict.fromkeys(prompts))
        features = []
        for start in range(0, len(different), size):
            batch = different[start : start + size]
            tokens = self.tokenizer([*batch, *[""] * (size - len(batch))])
            features += [*to_host(self.networks.text_encoder(Tensor(tokens)))[: len(batch)]]
        by_prompt = dict(zip(different, features, strict=True))
        return np.stack([by_prompt[prompt] for prompt in prompts])

    def _noise(self, seed: int) -> FloatArray:
        return np.random.default_rng(seed).standard_normal(self.latent_shape, np.float32)


def generate_shared(
    pipeline: TextToImage, prompts: Sequence[str], seeds: Sequence[int], collective: Collective
) -> FloatArray:
    """Make an image for each prompt and seed, (n, 3, H, W). Each rank makes its share, and all ranks get all images."""
    world_size = collective.world_size
    mine = slice(collective.rank, None, world_size)
    images = np.empty((len(prompts), 3, pipeline.height, pipeline.width), np.float32)
    for rank, share in enumerate(collective.allgather_object(pipeline.generate(prompts[mine], seeds[mine]))):
        images[rank::world_size] = share
    return images


def step_noise(seeds: Sequence[int], shape: tuple[int, ...], step: int) -> FloatArray:
    """Draw normal noise (B, C, H, W) float32 for one sampling step, each row from its image's seed."""
    # Uses a spawned sequence: one keyed by the list [seed, 0] would repeat the noise of z_T.
    sequences = [np.random.SeedSequence(seed, spawn_key=(step,)) for seed in seeds]
    return np.stack([np.random.default_rng(each).standard_normal(shape[1:], np.float32) for each in sequences])


def require_finite_images(images: FloatArray) -> None:
    """Check images (n, 3, H, W). Raises NotFiniteError: names the first image that is not finite."""
    for number, image in enumerate(images):
        if not np.isfinite(image).all():
            raise NotFiniteError(
                f"image {number} of {len(images)} is not finite: weights, guidance scale or compute type make numbers "
                "too large; lower the guidance scale, or look at the weights with `vpred-weights inspect`"
            )
