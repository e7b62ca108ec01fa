"""Images that are to be turned: the size that is indexed is that which is decoded, whatever reader, format and EXIF."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataConfig, ImageFetcher, Loader, make_order, open_source
from data.images.decode import decode, decode_sized
from data.images.transforms import load_pixels
from support.images.image_files import FORMATS, ORIENTATIONS, TURNED, WRITERS, encoded, noise, oriented, png_chunk

pytestmark = pytest.mark.filterwarnings("ignore:::PIL")  # they are of odd EXIF, which is what is tried
WIDE, TALL = (24, 8), (8, 24)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_what_turns_an_image_and_what_does_not(kind: str, orientation: str) -> None:
    """Values that EXIF does not know, and such as are no whole numbers, turn nothing."""
    content = oriented(noise(*WIDE), kind, orientation)
    image, size = decode_sized(content)
    assert image.size == size == (TALL if orientation in TURNED else WIDE)
    assert decode_sized(content, at_least=(2, 2))[1] == size


@pytest.mark.parametrize("orientation", range(10))
def test_avif_is_turned_by_its_own_marks(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image, size = decode_sized(encoded(noise(*WIDE), "AVIF", exif=exif))
    assert image.size == size == (TALL if 5 <= orientation <= 8 else WIDE)


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_tiff_is_turned_as_a_png_is(orientation: int) -> None:
    image = noise(*WIDE)
    png, tiff = (decode(oriented(image, kind, f"short {orientation}")) for kind in ("PNG", "TIFF"))
    np.testing.assert_array_equal(png, tiff)
    assert png.tobytes() != image.tobytes()


@pytest.mark.parametrize("exif", [b"Exif\0\0", b"Exif\0\0II*\0", b"Exif\0\0no tiff", b"Exif\0\0II*\0\xff\xff\xff\x7f"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_that_nobody_can_read_spoils_no_picture(kind: str, exif: bytes) -> None:
    assert decode_sized(encoded(noise(*WIDE), kind, exif=exif))[1] == WIDE


XMP = b'XML:com.adobe.xmp\0%s<x tiff:Orientation="6"/>'


@pytest.mark.parametrize("after_pixels", [False, True])
@pytest.mark.parametrize(
    "turned",
    [
        png_chunk(b"eXIf", struct.pack("<4sIHHHIHHI", b"II*\0", 8, 1, 0x0112, 3, 1, 6, 0, 0)),
        png_chunk(b"iTXt", XMP % b"\0\0\0\0"),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b'<x tiff:Orientation="6"/>')),
    ],
    ids=["eXIf", "XMP", "XMP, packed"],
)
def test_a_png_is_turned_by_what_stands_anywhere_in_it(turned: bytes, after_pixels: bool) -> None:
    plain = encoded(noise(*WIDE), "PNG")
    place = plain.index(b"IEND") - 4 if after_pixels else plain.index(b"IDAT") - 4
    image, size = decode_sized(plain[:place] + turned + plain[place:])
    assert image.size == size == TALL


def test_xmp_in_a_tiff_does_not_turn_it_behind_its_own_tag() -> None:
    xmp = b'<x tiff:Orientation="6"/>'
    image, size = decode_sized(encoded(noise(*WIDE), "TIFF", tiffinfo={700: xmp}))
    assert image.size == size == WIDE


@pytest.fixture
def images() -> dict[str, bytes]:
    """96 x 32 of each format and orientation, large enough for drafts: 0.jpeg, 1.png ..."""
    both = [(kind, orientation) for kind in FORMATS for orientation in ORIENTATIONS]
    return {
        f"{number}.{kind.lower()}": oriented(noise(96, 32, number), kind, orientation)
        for number, (kind, orientation) in enumerate(both)
    }


@pytest.mark.parametrize("layout", WRITERS)
@pytest.mark.parametrize("workers", [0, 1])
def test_the_indexed_size_is_the_decoded_one_for_every_reader(
    layout: str, workers: int, images: dict[str, bytes], tmp_path: Path
) -> None:
    WRITERS[layout](tmp_path, images)
    source = open_source(tmp_path)
    sizes = source.sizes(np.arange(len(images)))
    np.testing.assert_array_equal(sizes, [decode(content).size for content in images.values()])
    config = DataConfig.model_validate({"path": tmp_path, "resolution": 16, "workers": workers})
    order = make_order(source, config, 0, len(images))
    fetcher = ImageFetcher(source, config, 0)
    with Loader(source, fetcher, config, order, rank=0, world_size=1, start_samples_seen=0) as loader:
        batch = next(loader)
    np.testing.assert_array_equal(batch.arrays["original_sizes"], sizes[batch.sample_ids, ::-1])


def test_a_size_that_another_version_indexed_is_refused() -> None:
    config = DataConfig.model_validate({"path": Path(), "resolution": 8})
    with pytest.raises(ValueError, match=r"24 x 8 pixels, and \.vpred_index\.safetensors says 8 x 24"):
        load_pixels(encoded(noise(*WIDE), "PNG"), (24, 8), config, (8, 8), np.random.default_rng(0))
