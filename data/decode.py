"""The bytes of an image file to upright RGB pixels: the one way for training, caches, validation and checks."""

import io
import struct

import numpy as np
from PIL import Image, ImageOps

ORIENTATION = 0x0112  # EXIF
QUARTER_TURN = 5  # this orientation and those above
MAX_PIXELS = 89_478_485  # Pillow's own limit, where it only warns: 256 MiB of RGB
# A JPEG is decoded at 1 / divisor where that leaves at least so many times the pixels asked for per side. Half a size
# is well filtered as it is; a smaller one aliases near its limit, which the resize has to take away.
DRAFTS = {8: 1.25, 4: 1.25, 2: 1.0}
# What Pillow's readers raise at damaged files.
UNREADABLE = (
    ArithmeticError,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    Image.DecompressionBombWarning,
    Image.DecompressionBombError,
)


def decode(content: bytes, background: str = "white", at_least: tuple[int, int] | None = None) -> Image.Image:
    """The image as upright RGB; raises one of UNREADABLE.

    background: a colour as Pillow writes it, under transparent pixels. at_least: width and height that the caller will
    scale the upright image down to cover; a large JPEG may then come smaller, by a power of two.
    """
    with Image.open(io.BytesIO(content)) as file:
        if file.width * file.height > MAX_PIXELS:
            raise ValueError(f"{file.width} x {file.height} pixels are more than {MAX_PIXELS}")
        if at_least is not None and file.format == "JPEG":
            _draft(file, *at_least)
        ImageOps.exif_transpose(file, in_place=True)  # without, it copies what is upright
        return _to_rgb(_to_eight_bits(file), background)


def upright_size(content: bytes) -> tuple[int, int]:
    """Width and height in pixels as the image is to be seen; from its header alone. Raises one of UNREADABLE."""
    with Image.open(io.BytesIO(content)) as file:
        turned = file.getexif().get(ORIENTATION, 1) >= QUARTER_TURN
        return (file.height, file.width) if turned else file.size


def _draft(file: Image.Image, width: int, height: int) -> None:
    """Let libjpeg scale while it decodes. Covering (width, height) or, for an image on its side, (height, width)."""
    if file.getexif().get(ORIENTATION, 1) >= QUARTER_TURN:
        width, height = height, width
    ratio = min(file.width / width, file.height / height)
    for divisor, margin in DRAFTS.items():
        if ratio >= divisor * margin:
            file.draft(None, (file.width // divisor, file.height // divisor))
            return


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey scaled: Pillow's own conversion clips at 255. Wider pixels have no known range."""
    if image.mode == "F" or not image.mode.startswith("I"):
        if image.mode == "F":
            raise ValueError("float pixels have no known range; save it with 8 or 16 bits")
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("pixels of 32 bits have no known range; save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
