"""What the UNet is trained and judged on: latents and text, made from images and captions or read from a cache."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data import Batch, Cache, CacheSpecs, Sample, entry_keys, image_digests, load_centred, moments_keys
from data import sample_generator
from vpred_train.config import TrainConfig
from vpred_train.diffusion.schedule import FloatArray
from vpred_train.models.latents import drawn_latents, make_latents
from vpred_train.models.networks import Networks
from vpred_train.models.tokenizer import Tokenizer

Text = NDArray[Any]  # tokens (B, context_length) int32, or features of them (B, context_length, width) float32


class Inputs(Protocol):
    """Latents (B, C, h, w) float32 with their text; for a posterior's draw each image has its own generator."""

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        """Of a training batch, drawn by (seed, epoch, sample id)."""

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        """Of samples as they are, centre-cropped and unflipped; without generators the mode."""


class Online:
    """Made by the networks at each step."""

    def __init__(self, config: TrainConfig, networks: Networks) -> None:
        self.config = config
        self.latents = make_latents(config.model, networks.vae)
        self.tokenizer = Tokenizer(config.model.text_encoder.context_length, config.model.text_encoder.padding)

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        generators = posterior_generators(self.config.seed, batch)
        return self.latents.encode(batch.images, generators), self.tokenizer(batch.captions)

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        images = load_centred([sample.image for sample in samples], self.config.data)
        return self.latents.encode(images, generators), self.tokenizer([sample.text for sample in samples])


class Cached:
    """Read from a cache, in which all that is asked for was found before training began."""

    def __init__(self, config: TrainConfig, cache: Cache, specs: CacheSpecs) -> None:
        self.config, self.cache, self.specs = config, cache, specs

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        generators = posterior_generators(self.config.seed, batch)
        return self._drawn(batch.arrays["moments"], generators), batch.arrays["features"]

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        moments = self.cache.find(moments_keys(self.specs.moments, image_digests(samples), flipped=False))
        captions = self.cache.find(entry_keys(self.specs.text, [sample.text for sample in samples]))
        read = self.cache.read
        return self._drawn(np.stack([*map(read, moments)]), generators), np.stack([*map(read, captions)])

    def _drawn(self, moments: FloatArray, generators: Sequence[np.random.Generator]) -> FloatArray:
        mean, log_variance = np.split(moments, 2, axis=1)
        assert self.config.model.vae is not None  # noqa: S101 - the recipe's check
        return drawn_latents(mean, log_variance, generators, self.config.model.vae)


def posterior_generators(seed: int, batch: Batch) -> list[np.random.Generator]:
    """Each image's own for its draw from the autoencoder's posterior, so that it is the same on any rank."""
    return [
        sample_generator(seed, "posterior", int(epoch), int(sample_id))
        for epoch, sample_id in zip(batch.epochs, batch.sample_ids, strict=True)
    ]
