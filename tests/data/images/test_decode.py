"""Every kind of file as upright RGB, against pixels computed by hand; and what is refused."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images.decode import FORMATS, decode, decode_sized
from data.sources.rows import Place
from data.sources.scan import look
from support.images.image_files import encoded, noise, png_chunk


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
    assert np.abs(np.subtract(pixel(encoded(image, "PNG")), expected)).max() <= 1


def test_alpha_lies_on_the_colour_asked_for() -> None:
    clear = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG")
    assert pixel(clear, "#102030") == (0x10, 0x20, 0x30)


def test_a_palette_with_a_transparent_colour() -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 200, 30])
    assert pixel(encoded(image, "PNG")) == (10, 200, 30)
    assert pixel(encoded(image, "PNG", transparency=1), "blue") == (0, 0, 255)


def test_sixteen_bits_of_colour() -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 0x8000, 0x1234, 0xFFFF, 0, 0, 0) for _ in range(2))

    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    png = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*each) for each in chunks)
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
    bomb = encoded(Image.new("1", (9500, 9500)), "PNG")
    with pytest.raises(ValueError, match="9500 x 9500 pixels are more than 89478485"):
        decode(bomb)
    with pytest.raises(Image.DecompressionBombError):
        decode(encoded(Image.new("1", (20000, 20000)), "PNG"))
    with pytest.raises(ValueError, match="float pixels"):
        decode(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))
    with pytest.raises(ValueError, match="32 bits"):
        decode(encoded(Image.new("I", (4, 4), 1 << 20), "TIFF"))
    rng = np.random.default_rng(0)
    jpeg = encoded(Image.fromarray(rng.integers(0, 256, (400, 400, 3), np.uint8)), "JPEG")
    for content in (b"", b"no image", jpeg[: len(jpeg) // 2]):
        with pytest.raises(OSError, match=r"cannot identify|truncated"):
            decode(content, at_least=(8, 8))


LONG = b"x" * (5 << 20)
TEXTS = {
    "zTXt": png_chunk(b"zTXt", b"prompt\0\0" + zlib.compress(LONG)),
    "iTXt, packed": png_chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(LONG)),
    "iTXt": png_chunk(b"iTXt", b"workflow\0\0\0\0\0" + LONG * 14),  # beyond all that Pillow takes in one file
    "tEXt": png_chunk(b"tEXt", b"parameters\0" + LONG * 14),
    "iCCP": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(LONG)),
    "XMP": png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(LONG)),
    "EXIF as text": png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(LONG)),
    "unknown packing": png_chunk(b"zTXt", b"prompt\0\7x"),
    "a name that Pillow gives a meaning": png_chunk(b"tEXt", b"transparency\0x"),
}


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_the_text_of_a_png_spoils_no_picture(text: str, after_pixels: bool) -> None:
    image = noise(12, 10)
    plain = encoded(image, "PNG")
    place = plain.index(b"IEND") - 4 if after_pixels else plain.index(b"IDAT") - 4
    found = decode(plain[:place] + TEXTS[text] + plain[place:])
    assert found.tobytes() == image.tobytes()


def test_a_png_that_ends_within_its_text_is_refused() -> None:
    plain = encoded(noise(12, 10), "PNG")
    cut = plain[: plain.index(b"IDAT") - 4] + TEXTS["zTXt"][:50]
    with pytest.raises(OSError, match="cannot identify"):
        decode(cut)


def seen(content: bytes) -> str:
    """What is found wrong with an image file."""
    return look(lambda path, offset, length: content, Place(Path("a.jpg"), 0, -1)).fault


def test_whatever_a_reader_raises_is_a_fault_of_the_file() -> None:
    avif = encoded(Image.new("RGB", (64, 48)), "AVIF").replace(b"pitm", b"free")
    with pytest.raises(RuntimeError):
        decode(avif)
    assert seen(avif) == "a.jpg is no readable image (Failed to decode image: Missing or empty image item)"

    def out_of_memory(path: Path, offset: int, length: int) -> bytes:
        raise MemoryError

    found = look(out_of_memory, Place(Path("a.jpg"), 0, -1))
    assert found.fault == "a.jpg is no readable image (MemoryError)"


SPIDER = struct.pack(">256f", *([1.0] * 4 + [1.0] + [0.0] * 7 + [4.0] + [0.0] * 9 + [1024.0] + [0.0] * 233))


@pytest.mark.parametrize(
    "content",
    [
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
        b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, 40, 0, 0, 0, 0) + bytes(4) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
        SPIDER,
        encoded(Image.new("RGB", (4, 4)), "TGA"),
        struct.pack("<4s7I44x8I20x", b"DDS ", 124, 0, 8, 8, 0, 0, 0, 32, 0, 0, 0, 0, 0, 0, 0),
        b"\xd7\xcd\xc6\x9a" + bytes(60),  # a Windows metafile
        b"%PDF-1.4\n",
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
    ],
    ids=["PostScript", "PostScript with a preview", "SPIDER", "TGA", "DDS", "WMF", "PDF", "SVG"],
)
def test_only_formats_that_are_meant_are_opened(content: bytes) -> None:
    """Whatever its name: Pillow would start Ghostscript for the first of them, and others have readers that raise all
    sorts of things."""
    assert seen(content) == f"a.jpg is no image of a known format (known: {', '.join(FORMATS)})"


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_that_is_meant_is_read(kind: str) -> None:
    image = Image.new("RGB", (16, 12), (200, 100, 50))
    assert np.abs(np.subtract(pixel(encoded(image, kind)), (200, 100, 50))).max() <= 4
    assert seen(encoded(image, kind)) == ""
