"""A file to an array: decode, flatten, resize, crop, flip."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.config import DataConfig
from data.keyed_random import sample_generator

BACKGROUND = "white"  # under transparent pixels
TRANSFORM = "lanczos-1"  # in the keys of caches: to be changed with what makes other pixels of the same file


def decode(path: Path) -> Image.Image:
    """The whole image as upright RGB; raises OSError or SyntaxError (Pillow's) when it is none."""
    with Image.open(path) as file:
        upright = ImageOps.exif_transpose(file)
        if upright.mode.startswith("I"):  # 16-bit grey: Pillow's own conversion clips at 255 instead of scaling
            upright = Image.fromarray(np.clip(np.asarray(upright) >> 8, 0, 255).astype(np.uint8))
        if upright.has_transparency_data:
            rgba = upright.convert("RGBA")
            ground = Image.new("RGBA", rgba.size, BACKGROUND)
            return Image.alpha_composite(ground, rgba).convert("RGB")
        return upright.convert("RGB")


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
    path: Path, config: DataConfig, size: tuple[int, int], generator: np.random.Generator
) -> tuple[NDArray[np.uint8], Placement]:
    """(H, W, 3) uint8 of `size`, with antialias, and how it was placed."""
    image = decode(path)
    placement = place((image.height, image.width), size, config, generator)
    height, width = size
    # Only what the crop shows is computed: the filter still looks beyond the box, so that the pixels are those of
    # resizing all and cropping then.
    down, across = (old / new for old, new in zip(placement.original_size, placement.resized, strict=True))
    top, left = placement.top, placement.left
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    if (image.height, image.width) != size:
        image = image.resize((width, height), Image.Resampling.LANCZOS, box=box)
    if placement.flip:
        image = ImageOps.mirror(image)
    return np.asarray(image), placement


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(b, H, W, 3) uint8 -> (b, 3, H, W) float32 in [-1, 1]."""
    batch, height, width, channels = pixels.shape
    values = np.empty((batch, channels, height, width), np.float32)
    np.divide(pixels.transpose(0, 3, 1, 2), np.float32(127.5), out=values)
    values -= np.float32(1)
    return values


def load_image(path: Path, config: DataConfig, generator: np.random.Generator) -> NDArray[np.float32]:
    """(3, R, R) float32 in [-1, 1], at the recipe's square size."""
    pixels, _ = load_pixels(path, config, (config.resolution, config.resolution), generator)
    return normalised(pixels[None])[0]


def load_centred(paths: Sequence[Path], config: DataConfig) -> NDArray[np.float32]:
    """The images as they are, centre-cropped and unflipped: (n, 3, R, R) float32 in [-1, 1]."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack([load_image(path, plain, sample_generator(0, "augment", 0, 0)) for path in paths])
