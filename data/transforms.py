"""A file to an array: decode, flatten, resize, crop, flip."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from data.config import DataConfig
from data.keyed_random import sample_generator

BACKGROUND = "white"  # under transparent pixels


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


def load_image(path: Path, config: DataConfig, generator: np.random.Generator) -> NDArray[np.float32]:
    """(3, R, R) float32 in [-1, 1]: short side to R with antialias, then crop and flip as `config` says.

    Crop offset and flip are drawn from `generator`, always two draws and one, so that a sample's randomness does not
    depend on its shape.
    """
    image = decode(path)
    side = config.resolution
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


def load_centred(paths: Sequence[Path], config: DataConfig) -> NDArray[np.float32]:
    """The images as they are, centre-cropped and unflipped: (n, 3, R, R) float32 in [-1, 1]."""
    plain = config.model_copy(update={"crop": "center", "horizontal_flip": False})
    return np.stack([load_image(path, plain, sample_generator(0, "augment", 0, 0)) for path in paths])
