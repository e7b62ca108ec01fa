"""An image file's bytes to an array: decode, flatten, resize, crop, flip."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.config import DataConfig
from data.files import INDEX_NAME
from data.images.decode import decode_sized
from data.images.resample import resample

TRANSFORM = "lanczos-3"  # in the keys of caches: to be changed with what makes other pixels of the same file


@dataclass(frozen=True)
class Placement:
    """How an image comes to `size`: resized to `resized`, then cut out at `top` and `left`, mirrored with `flip`.

    All sizes are height and width in pixels; `original_size` is that of the upright image.
    """

    original_size: tuple[int, int]
    resized: tuple[int, int]
    top: int
    left: int
    flip: bool


def place(
    original_size: tuple[int, int], size: tuple[int, int], config: DataConfig, generator: np.random.Generator
) -> Placement:
    """Resized so that it just covers `size`, then cropped and flipped as `config` says.

    Crop offset and flip are drawn from `generator`, always two draws and one, so that a sample's randomness does not
    depend on its shape.
    """
    scale = max(target / edge for target, edge in zip(size, original_size, strict=True))
    height, width = (max(target, round(edge * scale)) for target, edge in zip(size, original_size, strict=True))
    across, down = generator.random(2)
    if config.crop == "center":
        across = down = 0.5
    top, left = int(down * (height - size[0] + 0.999)), int(across * (width - size[1] + 0.999))
    return Placement(original_size, (height, width), top, left, _mirrors(config, generator))


def flips(config: DataConfig, generator: np.random.Generator) -> bool:
    """Whether an image is mirrored, by the draws of `place` from the same generator."""
    generator.random(2)  # the crop's
    return _mirrors(config, generator)


def _mirrors(config: DataConfig, generator: np.random.Generator) -> bool:
    return config.horizontal_flip and bool(generator.random() < 0.5)


def load_pixels(
    content: bytes,
    indexed_size: tuple[int, int] | None,
    config: DataConfig,
    size: tuple[int, int],
    generator: np.random.Generator,
) -> tuple[NDArray[np.uint8], Placement]:
    """(3, H, W) uint8 of `size`, with antialias (Lanczos), and how it was placed.

    `indexed_size`: height and width in pixels of the upright image as it was checked, where it was. Raises ValueError
    when it has others now, by which its batch was chosen.
    """
    height, width = size
    image, (whole_width, whole_height) = decode_sized(content, config.background, (width, height))
    original_size = whole_height, whole_width
    if indexed_size not in (None, original_size):
        found = f"{whole_width} x {whole_height} pixels, and {INDEX_NAME} says {indexed_size[1]} x {indexed_size[0]}"
        raise ValueError(f"it has {found}, made by another version: remove it and start again")
    placement = place(original_size, size, config, generator)
    # Of the last pixel of a draft a part may lie beyond the image, which is not to stretch it.
    divisor = 2 ** round(math.log2(max(original_size) / max(image.size)))
    down, across = (edge / now / divisor for edge, now in zip(original_size, placement.resized, strict=True))
    # Only what the crop shows is computed: the filter still looks beyond the box, so that the pixels are those of
    # resizing all and cropping then.
    top, left = placement.top, placement.left
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    return resample(np.asarray(image), box, size, placement.flip), placement


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """uint8 of any shape -> float32 in [-1, 1]."""
    values: NDArray[np.float32] = np.divide(pixels, np.float32(127.5), dtype=np.float32)
    np.subtract(values, np.float32(1), out=values)
    return values


def load_image(
    content: bytes, config: DataConfig, generator: np.random.Generator, size: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """(3, H, W) float32 in [-1, 1] of `size`, height and width, without which it is the recipe's square."""
    size = size or (config.resolution, config.resolution)
    pixels, _ = load_pixels(content, None, config, size, generator)
    return normalised(pixels)
