"""The resize against Pillow's own Lanczos filter on float pixels, which are not rounded between its two passes."""

import numpy as np
import pytest
from PIL import Image

from data.images.resample import resample

LANCZOS = Image.Resampling.LANCZOS


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize(
    ("shape", "box", "size"),
    [
        ((96, 128), (16, 0, 112, 96), (64, 64)),  # a crop of a landscape
        ((97, 131), (0.37, 3.9, 130.61, 96.5), (40, 56)),
        ((300, 41), (0, 0, 41, 300), (33, 8)),
        ((640, 480), (0, 100.5, 480, 580.5), (17, 16)),  # 28 pixels to one
        ((20, 24), (2, 2, 18, 18), (48, 80)),  # an image that grows
        ((1, 1), (0, 0, 1, 1), (5, 3)),
        ((32, 32), (0, 0, 32, 32), (32, 32)),
    ],
)
def test_it_is_pillows_lanczos(shape: tuple[int, int], box: tuple[float, ...], size: tuple[int, int]) -> None:
    pixels = noise(*shape)
    found = resample(pixels, box, size)
    assert (found.shape, found.dtype) == ((3, *size), np.uint8)
    for channel in range(3):
        floats = Image.fromarray(pixels[:, :, channel].astype(np.float32))
        exact = np.clip(np.asarray(floats.resize(size[::-1], LANCZOS, box=box)), 0, 255)
        assert np.abs(found[channel] - exact).max() < 0.502  # the nearest byte
    np.testing.assert_array_equal(resample(pixels, box, size, mirror=True), found[:, :, ::-1])


def test_bytes_differ_from_pillows_by_its_rounding_alone() -> None:
    pixels = noise(192, 256) // 2 + 64  # Pillow also cuts off what overshoots between the passes
    box = (10.25, 0, 202.25, 192)
    theirs = np.asarray(Image.fromarray(pixels).resize((128, 128), LANCZOS, box=box)).transpose(2, 0, 1)
    difference = np.abs(resample(pixels, box, (128, 128)) - theirs.astype(int))
    assert difference.max() == 1
    assert difference.mean() < 0.2


def test_a_flat_image_stays_flat() -> None:
    assert (resample(np.full((37, 53, 3), 201, np.uint8), (0, 0, 53, 37), (16, 48)) == 201).all()
