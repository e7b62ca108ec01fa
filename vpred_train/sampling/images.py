"""Encodes images as PNG files."""

import math
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vpred_train.arrays import FloatArray
from vpred_train.sampling.pipeline import require_finite_images


def png(image: Image.Image, text: PngInfo | None = None) -> bytes:
    """Encode the image as a PNG file, with `text` as its text chunks."""
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True, pnginfo=text)
    return buffer.getvalue()


def png_of(image: FloatArray, text: PngInfo | None = None) -> bytes:
    """Encode an image (3, H, W) in [-1, 1] as a PNG file."""
    return png(Image.fromarray(to_uint8(image[None])[0]), text)


def contact_sheet(images: FloatArray) -> bytes:
    """Encode all images (n, 3, H, W) on one PNG page, side by side in rows. The page is as square as possible."""
    columns = math.ceil(math.sqrt(len(images)))
    _, _, height, width = images.shape
    page = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height), "white")
    for index, image in enumerate(to_uint8(images)):
        page.paste(Image.fromarray(image), (index % columns * width, index // columns * height))
    return png(page)


def to_uint8(images: FloatArray) -> NDArray[np.uint8]:
    """Round images (n, 3, H, W) in [-1, 1] to (n, H, W, 3) uint8. Raises NotFiniteError: when one is not finite."""
    require_finite_images(images)
    return np.rint((images.transpose(0, 2, 3, 1) + 1) * 127.5).clip(0, 255).astype(np.uint8)
