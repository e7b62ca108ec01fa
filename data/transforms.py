"""An image file's bytes to an array: decode, flatten, resize, crop, flip."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.config import DataConfig
from data.decode import decode
from data.keyed_random import sample_generator
from data.source import Sample


def load_image(content: bytes, config: DataConfig, generator: np.random.Generator) -> NDArray[np.float32]:
    """(3, R, R) float32 in [-1, 1]: short side to R with antialias, then crop and flip as `config` says.

    Crop offset and flip are drawn from `generator`, always two draws and one, so that a sample's randomness does not
    depend on its shape.
    """
    side = config.resolution
    image = decode(content, config.background, (side, side))
    scale = side / min(image.size)
    width, height = (max(side, round(edge * scale)) for edge in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    across, down, coin = generator.random(3)
    if config.crop == "center":
        across = down = 0.5
    left, top = int(across * (width - side + 0.999)), int(down * (height - side + 0.999))
    image = image.crop((left, top, left + side, top + side))
    if config.horizontal_flip and coin < 0.5:
        image = ImageOps.mirror(image)
    pixels = np.asarray(image, np.float32).transpose(2, 0, 1)
    return np.ascontiguousarray(pixels / 127.5 - 1)


def load_centred(samples: Sequence[Sample], config: DataConfig) -> NDArray[np.float32]:
    """The images as they are, centre-cropped and unflipped: (n, 3, R, R) float32 in [-1, 1]."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack([load_image(each.read(), plain, sample_generator(0, "augment", 0, 0)) for each in samples])
