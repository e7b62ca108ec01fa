"""Decodes an image file's bytes to upright RGB pixels. Training, caches, validation and checks all use this module."""

import io
import struct
import zlib

import numpy as np
from PIL import Image

from data.images.size import Size, size_of_pil

# The formats that are opened, with their file name suffixes. Pillow's other readers are left out: the PostScript reader
# starts Ghostscript, and some readers accept any bytes as an image.
FORMATS = {
    "AVIF": ("avif",),
    "BMP": ("bmp", "dib"),
    "GIF": ("gif",),
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "JPEG2000": ("jp2", "j2k"),
    "PNG": ("png",),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "TIFF": ("tif", "tiff"),
    "WEBP": ("webp",),
}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
ORIENTATION = 0x0112  # EXIF
UPRIGHT, QUARTER_TURN = 1, 5  # orientations from QUARTER_TURN on swap width and height
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
MAX_PIXELS = 89_478_485  # Pillow's limit, at which it only warns: 256 MiB of RGB
# divisor -> margin: a JPEG is decoded at 1 / divisor if each side then has at least margin times the requested pixels.
# Half size is well filtered; a smaller scale aliases near its limit, and the resize must remove that.
DRAFTS = {8: 1.25, 4: 1.25, 2: 1.0}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TEXT = {b"tEXt", b"zTXt", b"iTXt", b"iCCP"}  # chunks
PNG_ORIENTATION = {b"XML:com.adobe.xmp", b"Raw profile type exif"}  # keys of text chunks that may hold the orientation
PNG_TEXT_BYTES = 1 << 20


def decode(content: bytes, background: str = "white", at_least: Size | None = None) -> Image.Image:
    """Return the image as upright RGB, as `decode_sized` makes it."""
    return decode_sized(content, background, at_least)[0]


def decode_sized(content: bytes, background: str = "white", at_least: Size | None = None) -> tuple[Image.Image, Size]:
    """Return the image as upright RGB, and the size of the upright image before any reduction.

    background: colour under transparent pixels, as Pillow writes colours.
    at_least: size that the caller will scale the upright image down to cover. A large JPEG may then come smaller, by a
    power of two.
    Raises ValueError: when the image has too many or no pixels, or its header states another size.
    Raises whatever Pillow raises.
    """
    with Image.open(io.BytesIO(_without_text(content)), formats=tuple(FORMATS)) as file:
        size = size_of_pil(file.size)
        if size.width * size.height > MAX_PIXELS:
            raise ValueError(f"{size} pixels are more than {MAX_PIXELS}")
        if min(size) < 1:
            raise ValueError(f"it has {size} pixels")
        if file.format == "TIFF":
            file.info.pop("xmp", None)  # Pillow turns a TIFF by its own orientation tag
        if at_least is not None and file.format == "JPEG":
            _draft(file, at_least)
        announced = file.size
        file.load()
        if file.size != announced:
            raise ValueError(
                f"its header declares {size_of_pil(announced)} pixels, but it has {size_of_pil(file.size)}"
            )
        orientation = _orientation(file)
        image = file.transpose(TURNS[orientation]) if orientation != UPRIGHT else file
        upright = Size(size.width, size.height) if orientation >= QUARTER_TURN else size
        return _to_rgb(_to_eight_bits(image), background), upright


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation of the pixels that Pillow returns; UPRIGHT for values outside the standard.

    Pillow itself turns a TIFF when it loads the pixels.
    """
    try:
        found = file.getexif().get(ORIENTATION)
    except Exception:  # unreadable EXIF does not make an image bad
        return UPRIGHT
    return found if isinstance(found, int) and found in TURNS else UPRIGHT


def _draft(file: Image.Image, at_least: Size) -> None:
    """Let libjpeg scale while it decodes. The upright result covers `at_least`."""
    height, width = reversed(at_least) if _orientation(file) >= QUARTER_TURN else at_least
    ratio = min(file.width / width, file.height / height)
    for divisor, margin in DRAFTS.items():
        if ratio >= divisor * margin:
            file.draft(None, (file.width // divisor, file.height // divisor))
            return


def _without_text(content: bytes) -> bytes:
    """Return a PNG without its text chunks and colour profiles, and any other content unchanged.

    Pillow refuses an image for such chunks, above all for long ones. Chunks that may hold the orientation stay.
    """
    if not content.startswith(PNG_SIGNATURE):
        return content
    kept, start, place = [], 0, len(PNG_SIGNATURE)
    while place + 8 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 12 + length
        if kind in PNG_TEXT and not _may_orient(kind, content[place + 8 : end - 4]):
            kept.append(content[start:place])
            start = end
        place = end
    return b"".join([*kept, content[start:]]) if kept else content


def _may_orient(kind: bytes, body: bytes) -> bool:
    """Return whether a PNG's text chunk may hold the orientation and is short enough to be read."""
    key, _, text = body.partition(b"\0")
    if key not in PNG_ORIENTATION:
        return False
    packed = kind == b"zTXt" or (kind == b"iTXt" and not text.startswith(b"\0"))
    if not packed:
        return len(text) <= PNG_TEXT_BYTES
    inflater = zlib.decompressobj()
    try:
        inflater.decompress(text[1:] if kind == b"zTXt" else text[2:].split(b"\0", 2)[-1], PNG_TEXT_BYTES)
    except zlib.error:
        return False
    return not inflater.unconsumed_tail


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits, since Pillow's conversion clips at 255.

    Raises ValueError: when pixels are floats or values exceed 16 bits, since these have no known range.
    """
    if image.mode == "F" or not image.mode.startswith("I"):
        if image.mode == "F":
            raise ValueError("the range of float pixels is unknown; save it with 8 or 16 bits")
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ValueError("the range of 32-bit pixels is unknown; save it with 8 or 16 bits")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _to_rgb(image: Image.Image, background: str) -> Image.Image:
    if not image.has_transparency_data:
        return image if image.mode == "RGB" else image.convert("RGB")
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
