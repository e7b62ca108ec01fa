"""Declares what metrics need of a network: images to features, the same bits whatever else is in the batch."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpred_train.host_copies import to_device, to_host
from vpred_train.weights.formats.stored_tensor import Float32

BATCH_SIZE = 8
Preprocess = Callable[[Image.Image], Float32]


@dataclass(frozen=True)
class FeatureNetwork:
    """Maps images to features.

    name: architecture, such as "inception-v3".
    digest: SHA-256 of the weights' files, hexadecimal.
    recipe: how images are resized and scaled, and whatever else the weights alone do not fix.
    width: number of features.
    side: pixels of the input.
    preprocess: an image of any mode and size -> (3, side, side) float32.
    cell: images (batch_size, 3, side, side) -> features (batch_size, width), float32. It is compiled at its first use.
    """

    name: str
    digest: str
    recipe: str
    width: int
    side: int
    preprocess: Preprocess
    cell: Any
    batch_size: int = BATCH_SIZE

    @property
    def key(self) -> str:
        """Return what the features of an image depend on, for a cache."""
        return f"{self.name} {self.digest} {self.recipe}"

    def features(self, images: Float32) -> Float32:
        """Return the features (n, width) float32 of preprocessed images (n, 3, side, side)."""
        return in_batches(self.cell, self.batch_size, self.width, images)


def in_batches(cell: Any, batch_size: int, width: int, *arrays: NDArray[Any]) -> Float32:
    """Return the rows (n, width) that `cell` makes of the rows of `arrays`, `batch_size` at a time.

    Zeros fill the last batch up, so that one graph is compiled and a row gets the same bits in any batch.
    """
    count = len(arrays[0])
    found = np.empty((count, width), np.float32)
    for start in range(0, count, batch_size):
        parts = [array[start : start + batch_size] for array in arrays]
        missing = batch_size - len(parts[0])
        filled = [np.concatenate([part, np.zeros((missing, *part.shape[1:]), part.dtype)]) for part in parts]
        rows = to_host(cell(*map(to_device, filled)))
        found[start : start + len(parts[0])] = rows[: len(parts[0])]
    return found


def sha256_of(files: Iterable[Path]) -> str:
    """Return the SHA-256 of the files' contents, one after the other, hexadecimal.

    Raises OSError: when a file cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                digest.update(piece)
    return digest.hexdigest()
