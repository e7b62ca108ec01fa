"""Makes one sample at a time for the loader, in any process: decodes, crops and flips images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.images.size import Size
from data.images.transforms import load_image, load_pixels, normalised
from data.keyed_random import sample_generator
from data.sources.source import Sample, Source

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class ArraySpec:
    """Declares shape and dtype of one array of one sample."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """The array's size in memory, bytes."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


class Fetcher(Protocol):
    """Makes the arrays of a sample. It is pickled to worker processes, so it holds no open file and no lock.

    size: size of the images of the sample's batch.
    """

    def specs(self, size: Size) -> dict[str, ArraySpec]:
        """Return the specs of the arrays that `fetch` fills, by name."""

    def fetch(self, sample_id: int, epoch: int, size: Size, into: Arrays) -> None:
        """Fill the arrays of a sample. Random choices are keyed by (seed, epoch, sample id).

        into: the sample's place in the batch, with the shapes and dtypes that `specs` declares.
        """

    def collate(self, arrays: Arrays) -> Arrays:
        """Convert the stacked arrays (b, ...) of a batch to those that the trainer takes.

        This is for work that costs less in the trainer's process than the transfer of its result between processes.
        The result may be the same arrays, or share their memory.
        """


@dataclass(frozen=True)
class ImageFetcher:
    """Fetches images of a source.

    The arrays of a sample are:
    images: (3, H, W) float32 in [-1, 1], transferred as uint8.
    original_sizes: (2,) int32, height and width in pixels of the upright image before the resize.
    crops: (2,) int32, top and left of the crop in the resized image, pixels.
    """

    source: Source
    config: DataConfig
    seed: int

    def specs(self, size: Size) -> dict[str, ArraySpec]:
        pair = ArraySpec((2,), "int32")
        return {"images": ArraySpec((3, *size), "uint8"), "original_sizes": pair, "crops": pair}

    def fetch(self, sample_id: int, epoch: int, size: Size, into: Arrays) -> None:
        generator = sample_generator(self.seed, "augment", epoch, sample_id)
        sample = self.source.sample(sample_id)
        pixels, placement = load_pixels(sample.read(), sample.size, self.config, size, generator)
        into["images"][...] = pixels
        into["original_sizes"][...] = placement.original_size
        into["crops"][...] = placement.top, placement.left

    def collate(self, arrays: Arrays) -> Arrays:
        return {**arrays, "images": normalised(arrays["images"])}


def load_centred(samples: Sequence[Sample], config: DataConfig, size: Size | None = None) -> NDArray[np.float32]:
    """Load images centre-cropped and unflipped: (n, 3, H, W) float32 in [-1, 1]. `size` is as in `load_image`."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack([load_image(each.read(), plain, sample_generator(0, "augment", 0, 0), size) for each in samples])
