"""Makes the entries of a cache with the autoencoder's encoder and the text encoder."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from mindspore import Tensor
from numpy.typing import NDArray

from data import load_centred
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.host_copies import to_host
from vpred_train.latent_cache.plan import Task
from vpred_train.models.build import networks_of
from vpred_train.models.latents import LatentSpace
from vpred_train.text.tokenizer import Tokenizer

Item = TypeVar("Item")


class Encoders:
    """Holds the autoencoder and the text encoder with the recipe's weights, compiled for batches of `batch_size`."""

    def __init__(self, config: TrainConfig, batch_size: int) -> None:
        if config.model.vae is None:
            raise ValueError("the recipe has no autoencoder")
        self.config, self.batch_size = config, batch_size
        networks = networks_of(config, ("text_encoder", "vae"))
        self.text_encoder = networks.text_encoder
        self.latents = LatentSpace(networks.vae, config.model.vae)
        text = config.model.text_encoder
        self.tokenizer = Tokenizer(text.context_length, text.padding)

    def moments(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, FloatArray]]:
        """Yield the mean above the log-variance, (2 C, h, w), of images of one size.

        The next batch is loaded meanwhile.
        """
        with ThreadPoolExecutor(1) as pool:
            parts = batches(tasks, self.batch_size)
            ahead = [pool.submit(self._load, part) for part in parts[:1]]
            for number, part in enumerate(parts, 1):
                images = ahead.pop().result()
                ahead += [pool.submit(self._load, following) for following in parts[number : number + 1]]
                moments = np.concatenate(self.latents.posterior(filled(images, self.batch_size)), axis=1)
                yield from zip(part, moments, strict=False)

    def features(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, FloatArray]]:
        """Yield the text encoder's features of each caption, (context_length, width)."""
        for part in batches(tasks, self.batch_size):
            tokens = filled(self.tokenizer([task.text for task in part]), self.batch_size)
            yield from zip(part, to_host(self.text_encoder(Tensor(tokens))), strict=False)

    def _load(self, tasks: Sequence[Task]) -> FloatArray:
        try:
            images = load_centred([task.sample for task in tasks if task.sample], self.config.data, tasks[0].size)
        except Exception as error:
            origins = ", ".join(task.sample.origin for task in tasks if task.sample)
            raise RuntimeError(f"one of the samples {origins} cannot be loaded") from error
        flipped = np.array([task.flipped for task in tasks])
        images[flipped] = images[flipped, :, :, ::-1]
        return images


def batches(items: Sequence[Item], size: int) -> list[Sequence[Item]]:
    """Divide the items, in order, into batches of `size`."""
    return [items[start : start + size] for start in range(0, len(items), size)]


def filled(rows: NDArray[Any], size: int) -> NDArray[Any]:
    """Fill up a short batch with its first row, so that only one shape is compiled."""
    return np.concatenate([rows, rows[:1].repeat(size - len(rows), 0)])
