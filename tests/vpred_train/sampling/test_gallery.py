"""Nearest images, grids and the PNGs of single samples."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from vpred_train.sampling.gallery import nearest_real, write_grids
from vpred_train.sampling.images import png_of, to_uint8


def test_nearest_is_by_the_angle_and_not_the_length() -> None:
    rng = np.random.default_rng(0)
    real = rng.standard_normal((20, 3, 4, 4)).astype(np.float32)
    order = rng.permutation(20)
    sampled = real[order] * rng.uniform(0.2, 3, (20, 1, 1, 1)) + rng.normal(0, 0.1, real.shape)
    np.testing.assert_array_equal(nearest_real(sampled, real), order)


def test_pixels_are_rounded_and_cut_off() -> None:
    values = np.array([-1.2, -1, 0, 0.003, 1, 2], np.float32)
    image = np.tile(values[None, :, None], (3, 1, 1))[None]
    assert to_uint8(image)[0, :, 0, 0].tolist() == [0, 0, 128, 128, 255, 255]
    with Image.open(BytesIO(png_of(image[0]))) as decoded:
        assert decoded.size == (1, 6)
        assert decoded.getpixel((0, 4)) == (255, 255, 255)


def test_grids_hold_every_image_and_mark_the_misses(tmp_path: Path) -> None:
    real = np.zeros((50, 3, 8, 8), np.float32)
    sampled = np.full((50, 3, 8, 8), 1, np.float32)
    nearest = np.arange(50)
    nearest[1] = 0
    paths = write_grids(tmp_path, [f"prompt {index}" for index in range(50)], real, sampled, nearest)
    assert [path.name for path in paths] == ["grid_0.png", "grid_1.png"]
    pixels = np.asarray(Image.open(paths[0]).convert("RGB"))
    colours = {tuple(colour) for colour in pixels.reshape(-1, 3)}
    assert (0x2E, 0x7D, 0x32) in colours
    assert (0xC6, 0x28, 0x28) in colours
    assert (128, 128, 128) in colours
