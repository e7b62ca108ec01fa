"""Turns an image file's bytes into an array: decode, flatten, resize, crop, flip."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.files import INDEX_NAME
from data.images.decode import decode_sized
from data.images.resample import resample
from data.images.size import Size

TRANSFORM = "lanczos-3"  # part of cache keys: change it whenever the same file gives other pixels


@dataclass(frozen=True)
class Placement:
    """Describes how an image gets its training size: resized to `resized`, cropped at `top` and `left`, then mirrored.

    original_size: of the upright image.
    resized: of the image before the crop.
    top, left: offset of the crop in the resized image, pixels.
    flip: whether the crop is mirrored.
    """

    original_size: Size
    resized: Size
    top: int
    left: int
    flip: bool


def place(original_size: Size, size: Size, config: DataConfig, generator: np.random.Generator) -> Placement:
    """Resize so that the image just covers `size`, then crop and flip as `config` declares.

    The crop offset takes two draws from `generator` and the flip one, whatever the image's shape. So a sample's
    randomness does not depend on its shape.
    """
    scale = max(target / edge for target, edge in zip(size, original_size, strict=True))
    height, width = (max(target, round(edge * scale)) for target, edge in zip(size, original_size, strict=True))
    across, down = generator.random(2)
    if config.crop == "center":
        across = down = 0.5
    top, left = int(down * (height - size.height + 0.999)), int(across * (width - size.width + 0.999))
    return Placement(original_size, Size(height, width), top, left, _mirrors(config, generator))


def flips(config: DataConfig, generator: np.random.Generator) -> bool:
    """Return whether an image is mirrored, by the same draws from the same generator as in `place`."""
    generator.random(2)  # the draws of the crop
    return _mirrors(config, generator)


def _mirrors(config: DataConfig, generator: np.random.Generator) -> bool:
    return config.horizontal_flip and bool(generator.random() < 0.5)


def load_pixels(
    content: bytes,
    indexed_size: Size | None,
    config: DataConfig,
    size: Size,
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], Placement]:
    """Return (3, H, W) uint8 of `size`, resized with antialiasing (Lanczos), and how the image was placed.

    indexed_size: size of the upright image according to the index, which chose its batch; None without an index.
    Raises ValueError: when the image has another size than `indexed_size`.
    """
    image, original_size = decode_sized(content, config.background, size)
    if indexed_size not in (None, original_size):
        raise ValueError(
            f"it has {original_size} pixels, but {INDEX_NAME} says {indexed_size}; another version made {INDEX_NAME}: "
            "remove it and start again"
        )
    placement = place(original_size, size, config, generator)
    # A part of a draft's last pixel may lie beyond the image. It must not stretch the image.
    divisor = 2 ** round(math.log2(max(original_size) / max(image.size)))
    down, across = (edge / now / divisor for edge, now in zip(original_size, placement.resized, strict=True))
    # Only the crop is computed. The filter still reads beyond the box, so the pixels equal those of a resize of the
    # full image and a crop.
    top, left = placement.top, placement.left
    box = (left * across, top * down, (left + size.width) * across, (top + size.height) * down)
    return resample(np.asarray(image), box, size, placement.flip), placement


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Scale uint8 of any shape to float32 in [-1, 1]."""
    values: NDArray[np.float32] = np.divide(pixels, np.float32(127.5), dtype=np.float32)
    np.subtract(values, np.float32(1), out=values)
    return values


def load_image(
    content: bytes, config: DataConfig, generator: np.random.Generator, size: Size | None = None
) -> NDArray[np.float32]:
    """Return (3, H, W) float32 in [-1, 1].

    size: size of the result; None: the recipe's square.
    """
    size = size or Size(config.resolution, config.resolution)
    pixels, _ = load_pixels(content, None, config, size, generator)
    return normalised(pixels)
