"""What the loader asks for one sample at a time, in whichever process: images decoded, cropped and flipped."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.images.transforms import load_image, load_pixels, normalised
from data.keyed_random import sample_generator
from data.sources.source import Sample, Source

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one array of one sample."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """Its size in memory."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Fetcher(Protocol):
    """Makes the arrays of a sample. It is pickled to worker processes, so it holds no open file and no lock.

    `size`: height and width in pixels of the sample's batch.
    """

    def specs(self, size: tuple[int, int]) -> dict[str, ArraySpec]:
        """What `fetch` fills."""

    def fetch(self, sample_id: int, epoch: int, size: tuple[int, int], into: Arrays) -> None:
        """Fill the arrays of a sample, its place in the batch, each of the shape and type that `specs` tells; random
        choices are keyed by (seed, epoch, sample id)."""

    def collate(self, arrays: Arrays) -> Arrays:
        """The arrays of a batch, stacked (b, ...), as the trainer takes them: what is cheaper in its process than to
        carry between two. They may be the same arrays or in their memory."""


@dataclass(frozen=True)
class ImageFetcher:
    """Images of a source: (3, H, W) float32 in [-1, 1] as `images`, carried as bytes; `original_sizes` and `crops`
    (2,) int32: height and width of the image as stored, top and left of the crop in the resized image."""

    source: Source
    config: DataConfig
    seed: int

    def specs(self, size: tuple[int, int]) -> dict[str, ArraySpec]:
        pair = ArraySpec((2,), "int32")
        return {"images": ArraySpec((3, *size), "uint8"), "original_sizes": pair, "crops": pair}

    def fetch(self, sample_id: int, epoch: int, size: tuple[int, int], into: Arrays) -> None:
        generator = sample_generator(self.seed, "augment", epoch, sample_id)
        sample = self.source.sample(sample_id)
        original_size = sample.height, sample.width
        pixels, placement = load_pixels(sample.read(), original_size, self.config, size, generator)
        into["images"][...] = pixels
        into["original_sizes"][...] = placement.original_size
        into["crops"][...] = placement.top, placement.left

    def collate(self, arrays: Arrays) -> Arrays:
        return {**arrays, "images": normalised(arrays["images"])}


def load_centred(
    samples: Sequence[Sample], config: DataConfig, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """The images as they are, centre-cropped and unflipped: (n, 3, H, W) float32 in [-1, 1], sized as `load_image`."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack([load_image(each.read(), plain, sample_generator(0, "augment", 0, 0), size) for each in samples])
