"""What a cache lacks of a recipe, and what that takes on disk. No MindSpore."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data import ABSENT, Cache, CacheSpecs, Sample, entry_keys, moments_keys
from vpred_train.config import TrainConfig
from vpred_train.recipe import OpenedData

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Task:
    """One entry to make under `key`: of a caption, or of an image, `flipped` or not."""

    key: np.void
    text: str = ""
    sample: Sample | None = None
    flipped: bool = False


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
        latent = (config.data.resolution // model.pixels_per_latent) ** 2
        moments = 2 * (vae.latent_channels if vae else 0) * latent
        features = model.text_encoder.context_length * model.text_encoder.width
        return FLOAT32_BYTES * (len(self.images) * moments + len(self.captions) * features)


def plan(config: TrainConfig, specs: CacheSpecs, data: OpenedData) -> Work:
    """What is not yet in the recipe's cache; equal images and equal captions count once."""
    cache = Cache(config.data.cache or Path())
    training = [data.training.sample(number) for number in range(len(data.training))]
    held_out = [data.held_out.sample(number) for number in range(len(data.held_out))] if data.held_out else []
    samples = [*training, *held_out]
    images: dict[bytes, Task] = {}
    for flipped, each in ((False, samples), (True, training if config.data.horizontal_flip else ())):
        keys = moments_keys(specs.moments, each, flipped)
        images |= {key.tobytes(): Task(key, "", sample, flipped) for key, sample in zip(keys, each, strict=True)}
    texts = [*dict.fromkeys(["", *(sample.text for sample in samples)])]
    captions = [Task(key, text) for key, text in zip(entry_keys(specs.text, texts), texts, strict=True)]
    lacking = _lacking(cache, [*images.values()]), _lacking(cache, captions)
    return Work(lacking[0], lacking[1], wanted=len(images) + len(captions))


def _lacking(cache: Cache, tasks: list[Task]) -> list[Task]:
    rows = cache.find(np.array([task.key for task in tasks]))
    return [task for task, row in zip(tasks, rows, strict=True) if row == ABSENT]
