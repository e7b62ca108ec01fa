"""What a cache lacks of a recipe, and what that takes on disk. No MindSpore."""

import math
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

import numpy as np

from data import ABSENT, Cache, CacheSpecs, Sample, entry_keys, moments_keys
from vpred_train.cached_data import needed
from vpred_train.config import TrainConfig
from vpred_train.recipe import OpenedData

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Task:
    """One entry to make under `key`: of a caption, or of an image, `flipped` or not, cropped to `size`, height and
    width in pixels."""

    key: np.void
    text: str = ""
    sample: Sample | None = None
    flipped: bool = False
    size: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Work:
    """What a cache lacks, of `wanted` entries in all."""

    images: list[Task]
    captions: list[Task]
    wanted: int

    @property
    def count(self) -> int:
        """Entries to make."""
        return len(self.images) + len(self.captions)

    def share(self, rank: int, world_size: int) -> "Work":
        """One rank's part."""
        return Work(self.images[rank::world_size], self.captions[rank::world_size], self.wanted)

    def nbytes(self, config: TrainConfig) -> int:
        """What the entries take on disk."""
        model, vae = config.model, config.model.vae
        latent_pixels = sum(math.prod(task.size) for task in self.images) // model.pixels_per_latent**2
        moments = 2 * (vae.latent_channels if vae else 0) * latent_pixels
        features = model.text_encoder.context_length * model.text_encoder.width
        return FLOAT32_BYTES * (moments + len(self.captions) * features)


def plan(config: TrainConfig, specs: CacheSpecs, data: OpenedData) -> Work:
    """What is not yet in the recipe's cache; equal images and equal captions count once. The images of one size come
    one behind the other."""
    cache = Cache(config.data.cache or Path())
    images: dict[bytes, Task] = {}
    texts = {"": None}
    for each in needed(config, data.training, data.held_out):
        samples = [each.source.sample(number) for number in range(len(each.source))]
        sizes = [each.buckets.sizes[number] for number in each.buckets.number_of(np.arange(len(samples)))]
        for flipped in (False, True)[: 1 + each.mirrored]:
            keys = moments_keys(specs, samples, each.buckets, flipped)
            for key, sample, size in zip(keys, samples, sizes, strict=True):
                images[key.tobytes()] = Task(key, "", sample, flipped, size)
        texts |= dict.fromkeys(sample.text for sample in samples)
    captions = [Task(key, text) for key, text in zip(entry_keys(specs.text, texts), texts, strict=True)]
    lacking = _lacking(cache, sorted(images.values(), key=attrgetter("size")))
    return Work(lacking, _lacking(cache, captions), wanted=len(images) + len(captions))


def _lacking(cache: Cache, tasks: list[Task]) -> list[Task]:
    rows = cache.find(np.array([task.key for task in tasks]))
    return [task for task, row in zip(tasks, rows, strict=True) if row == ABSENT]
