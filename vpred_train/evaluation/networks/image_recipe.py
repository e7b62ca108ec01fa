"""Prepares images as CLIP's and EfficientNet's publishers do, with Pillow alone.

The steps are those of torchvision's transforms on a Pillow image, in the order of OpenAI's CLIP: resize in the image's
mode, crop, convert to RGB. The bytes are equal. An image that is RGB already meets none of the questions of that order.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vpred_train.weights.formats.stored_tensor import Float32

LONGEST = 1 << 16  # pixels of the longer side after the resize, before the crop
OPENAI_MEAN, OPENAI_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class ImageRecipe:
    """Describes how an image becomes a network's input.

    side: pixels.
    mean, std: of each channel, in units of the largest value, 255.
    fit: "shortest" resizes the shorter side to `side` and crops the centre; "squash" resizes both sides, as MindONE's
    CLIP score does.
    """

    side: int
    mean: Triple = OPENAI_MEAN
    std: Triple = OPENAI_STD
    fit: Literal["shortest", "squash"] = "shortest"

    @property
    def text(self) -> str:
        """Return the recipe on one line."""
        return f"bicubic-{self.fit}-{self.side} mean {self.mean} std {self.std}"

    def pixels(self, image: Image.Image) -> NDArray[np.uint8]:
        """Return the pixels (side, side, 3) uint8 before they are scaled.

        Raises ValueError: when the image is so narrow that its resized longer side would not fit into memory.
        """
        side = self.side
        if self.fit == "squash":
            resized = _resized(image, (side, side))
        else:
            width, height = image.size
            short, long = sorted((width, height))
            longest = int(side * long / short)
            if longest > LONGEST:
                raise ValueError(f"it has {width} x {height} pixels, too narrow for a square of its centre")
            resized = _resized(image, (side, longest) if width <= height else (longest, side))
            left, top = round((resized.width - side) / 2), round((resized.height - side) / 2)
            resized = resized.crop((left, top, left + side, top + side))
        return np.asarray(resized.convert("RGB"))

    def __call__(self, image: Image.Image) -> Float32:
        """Return (3, side, side) float32: (pixels / 255 - mean) / std."""
        values = self.pixels(image).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
        mean, std = (np.asarray(each, np.float32)[:, None, None] for each in (self.mean, self.std))
        return np.ascontiguousarray((values - mean) / std)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)
