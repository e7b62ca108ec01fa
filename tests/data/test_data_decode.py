"""Every kind of file as upright RGB, against pixels computed by hand; and what is refused."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.decode import decode, decode_sized


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixel(content: bytes, background: str = "white") -> tuple[int, ...]:
    image = decode(content, background)
    assert image.mode == "RGB"
    return tuple(np.asarray(image)[0, 0].tolist())


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("1", (4, 4), 1), (255, 255, 255)),
        (Image.new("L", (4, 4), 51), (51, 51, 51)),
        (Image.new("LA", (4, 4), (0, 128)), (127, 127, 127)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 51)), (255, 204, 204)),
        (Image.new("I;16", (4, 4), 0x8000), (128, 128, 128)),
    ],
)
def test_modes_of_png(image: Image.Image, expected: tuple[int, ...]) -> None:
    assert np.abs(np.subtract(pixel(encoded(image)), expected)).max() <= 1


def test_alpha_lies_on_the_colour_asked_for() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))
    assert pixel(clear, "#102030") == (0x10, 0x20, 0x30)


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(encoded(image)) == (10, 200, 30)
    assert pixel(encoded(image, transparency=1), "blue") == (0, 0, 255)


def test_sixteen_bits_of_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 0x8000, 0x1234, 0xFFFF, 0, 0, 0) for _ in range(2))

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    assert pixel(png) == (0x80, 0x12, 0xFF)


def test_cmyk_jpeg() -> None:
    found = pixel(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    assert found[0] > 240
    assert max(found[1:]) < 15


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientations(orientation: int) -> None:
    """The four corners are where the EXIF standard puts the stored ones."""
    corners = {"red": (0, 0), "lime": (0, 1), "blue": (1, 0), "yellow": (1, 1)}  # row, column as stored
    stored = Image.new("RGB", (48, 32))
    for colour, (row, column) in corners.items():
        stored.paste(colour, (column * 24, row * 16, column * 24 + 24, row * 16 + 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(stored, "JPEG", quality=95, subsampling=0, exif=exif)
    # Where the stored row 0 and column 0 are seen (TIFF 6.0, Orientation).
    seen = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "lt", 6: "rt", 7: "rb", 8: "lb"}[orientation]
    row_side, column_side = seen
    image, size = decode_sized(content, at_least=(4, 4))
    assert size == ((48, 32) if orientation < 5 else (32, 48))
    assert (image.width > image.height) == (orientation < 5)
    place = {"t": (None, 0), "b": (None, 1), "l": (0, None), "r": (1, None)}
    across, down = (
        next(each for each in (place[row_side][axis], place[column_side][axis]) if each is not None) for axis in (0, 1)
    )
    x, y = (edge // 4 if not side else edge * 3 // 4 for side, edge in ((across, image.width), (down, image.height)))
    assert np.abs(np.subtract(image.getpixel((x, y)), (255, 0, 0))).max() < 30


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(
    ("stored", "at_least", "draft"),
    [
        ((800, 400), (300, 300), (800, 400)),
        ((800, 400), (200, 200), (400, 200)),  # a half where it just covers
        ((801, 403), (201, 201), (401, 202)),
        ((400, 800), (100, 100), (200, 400)),  # a quarter would cover too, but with nothing to spare
        ((400, 800), (80, 80), (100, 200)),
        ((800, 400), (40, 40), (100, 50)),
        ((800, 400), (100, 40), (200, 100)),  # both sides count
    ],
)
def test_drafts_are_powers_of_two_that_leave_enough(
    stored: tuple[int, int], at_least: tuple[int, int], draft: tuple[int, int], turned: bool
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).resize(stored, Image.Resampling.BICUBIC)
    content = encoded(smooth, "JPEG", quality=95, exif=exif)
    turn = slice(None, None, -1 if turned else 1)
    whole, found = decode(content), decode(content, at_least=at_least[turn])
    assert whole.size == stored[turn]
    assert found.size == draft[turn]
    small = [np.asarray(each.resize((50, 50), Image.Resampling.LANCZOS), float) for each in (whole, found)]
    assert np.abs(small[0] - small[1]).mean() < 1.5


def test_bombs_truncated_files_and_unknown_ranges_are_refused(recwarn: pytest.WarningsRecorder) -> None:
    bomb = encoded(Image.new("1", (9500, 9500)))
    with pytest.raises(ValueError, match="9500 x 9500 pixels are more than 89478485"):
        decode(bomb)
    with pytest.raises(Image.DecompressionBombError):
        decode(encoded(Image.new("1", (20000, 20000))))
    with pytest.raises(ValueError, match="float pixels"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))
    with pytest.raises(ValueError, match="32 bits"):
        decode(encoded(Image.new("I", (4, 4), 1 << 20), "TIFF"))
    rng = np.random.default_rng(0)
    jpeg = encoded(Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)), "JPEG")
    for content in (b"", b"no image", jpeg[: len(jpeg) // 2]):
        with pytest.raises(OSError, match=r"cannot identify|truncated"):
            decode(content, at_least=(8, 8))
