"""Makes the UNet's inputs, latents and text, from images and captions, or reads them from a cache."""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data import Batch, CacheSpecs, DataConfig, Entries, Sample, entry_keys, image_keys, load_centred, sample_generator
from vpred_train.arrays import FloatArray
from vpred_train.config.model import ModelConfig, VaeConfig
from vpred_train.models.latents import drawn_latents, make_latents
from vpred_train.models.networks import Networks
from vpred_train.text.tokenizer import Tokenizer

Text = NDArray[Any]  # tokens (B, context_length) int32, or features of them (B, context_length, width) float32


class ModelInputs(Protocol):
    """Makes latents (B, C, h, w) float32 and their text. Each image has its own generator for a posterior's draw."""

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        """Make latents and text of a training batch. Latents are drawn by (seed, epoch, sample id)."""

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        """Make latents and text of samples, centre-cropped to squares and not flipped.

        generators: draw the latents, one for each image; without them the latents are the posterior's mode
        """


class OnlineInputs:
    """Makes the inputs with the networks at each step."""

    def __init__(self, model: ModelConfig, data: DataConfig, seed: int, networks: Networks) -> None:
        self.data, self.seed = data, seed
        self.latents = make_latents(model, networks.vae)
        self.tokenizer = Tokenizer(model.text_encoder.context_length, model.text_encoder.padding)

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        generators = posterior_generators(self.seed, batch)
        return self.latents.encode(batch.images, generators), self.tokenizer(batch.captions)

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        images = load_centred(samples, self.data)
        return self.latents.encode(images, generators), self.tokenizer([sample.text for sample in samples])


class CachedInputs:
    """Reads the inputs from a cache. Every entry was found before training began.

    entries: places of the entries; `of_samples` needs `entries.squares`
    """

    def __init__(self, vae: VaeConfig, resolution: int, seed: int, entries: Entries, specs: CacheSpecs) -> None:
        self.vae, self.size, self.seed, self.entries, self.specs = vae, (resolution, resolution), seed, entries, specs

    def of_batch(self, batch: Batch) -> tuple[FloatArray, Text]:
        generators = posterior_generators(self.seed, batch)
        return self._drawn(batch.arrays["moments"], generators), batch.arrays["features"]

    def of_samples(
        self, samples: Sequence[Sample], generators: Sequence[np.random.Generator] = ()
    ) -> tuple[FloatArray, Text]:
        if self.entries.squares is None:
            raise ValueError("the entries were found without those of squares")
        hashes = np.array([list(bytes.fromhex(sample.content_hash)) for sample in samples], np.uint8)
        find, read = self.entries.squares.find, self.entries.cache.read
        moments = find(image_keys(self.specs, hashes, self.size, flipped=False)).tolist()
        captions = find(entry_keys(self.specs.text, [sample.text for sample in samples])).tolist()
        return self._drawn(np.stack([*map(read, moments)]), generators), np.stack([*map(read, captions)])

    def _drawn(self, moments: FloatArray, generators: Sequence[np.random.Generator]) -> FloatArray:
        mean, log_variance = np.split(moments, 2, axis=1)
        return drawn_latents(mean, log_variance, generators, self.vae)


def posterior_generators(seed: int, batch: Batch) -> list[np.random.Generator]:
    """Make a generator for each image's draw from the autoencoder's posterior. The draw is the same on any rank."""
    return [
        sample_generator(seed, "posterior", int(epoch), int(sample_id))
        for epoch, sample_id in zip(batch.epochs, batch.sample_ids, strict=True)
    ]
