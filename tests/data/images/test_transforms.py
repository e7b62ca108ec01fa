"""Decoding and cropping against arrays computed by hand."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import DataConfig, load_image
from data.images.transforms import load_pixels, place
from data.keyed_random import sample_generator


def config(**changes: object) -> DataConfig:
    return DataConfig.model_validate({"path": Path(), "resolution": 8, **changes})


def generator(sample_id: int = 0) -> np.random.Generator:
    return sample_generator(0, "augment", 0, sample_id)


def write(path: Path, pixels: np.ndarray, mode: str = "RGB") -> Path:
    Image.fromarray(pixels, mode).save(path)
    return path


def test_range_and_layout(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[2, 5] = (255, 128, 0)
    image = load_image(write(tmp_path / "a.png", pixels).read_bytes(), config(), generator())
    assert (image.shape, image.dtype) == ((3, 8, 8), np.float32)
    np.testing.assert_allclose(image[:, 2, 5], [1, 128 / 127.5 - 1, -1], atol=1e-6)
    assert image[0, 0, 0] == -1


def test_centre_crop_of_a_wide_image(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(16, dtype=np.uint8)[None, :, None], (8, 1, 3)) * 10
    image = load_image(write(tmp_path / "a.png", pixels).read_bytes(), config(), generator())
    np.testing.assert_allclose((image[0, 0] + 1) * 127.5, np.arange(4, 12) * 10, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1])
def test_random_crop_reaches_every_offset_of_either_axis_as_often(axis: int) -> None:
    size = [8, 8]
    size[axis] = 11
    draws = [place((size[0], size[1]), (8, 8), config(crop="random"), generator(n)) for n in range(2000)]
    offsets = [(drawn.top, drawn.left)[axis] for drawn in draws]
    assert {(drawn.top, drawn.left)[1 - axis] for drawn in draws} == {0}
    assert np.abs(np.bincount(offsets, minlength=4) - 500).max() < 5 * math.sqrt(2000 * 0.25 * 0.75)


def test_random_crop_reaches_every_offset_and_flip_mirrors(tmp_path: Path) -> None:
    pixels = np.tile(np.arange(11, dtype=np.uint8)[None, :, None], (8, 1, 3)) * 10
    path = write(tmp_path / "a.png", pixels)
    crops = [load_image(path.read_bytes(), config(crop="random"), generator(i)) for i in range(60)]
    assert {round((float(crop[0, 0, 0]) + 1) * 12.75) for crop in crops} == {0, 1, 2, 3}
    flipped = [load_image(path.read_bytes(), config(horizontal_flip=True), generator(i)) for i in range(60)]
    rising = [bool(image[0, 0, 0] < image[0, 0, -1]) for image in flipped]
    assert 15 < sum(rising) < 45
    np.testing.assert_array_equal(flipped[rising.index(True)], flipped[rising.index(False)][:, :, ::-1])


def test_transparency_lies_on_white_and_palettes_and_grey_become_rgb(tmp_path: Path) -> None:
    clear = write(tmp_path / "clear.png", np.zeros((8, 8, 4), np.uint8), "RGBA")
    assert load_image(clear.read_bytes(), config(), generator()).min() == 1
    grey = write(tmp_path / "grey.png", np.full((8, 8), 51, np.uint8), "L")
    np.testing.assert_allclose(load_image(grey.read_bytes(), config(), generator()), 51 / 127.5 - 1, atol=1e-6)
    Image.new("P", (8, 8), 1).save(tmp_path / "palette.png")
    assert load_image((tmp_path / "palette.png").read_bytes(), config(), generator()).shape == (3, 8, 8)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # rotated by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = load_image((tmp_path / "a.png").read_bytes(), config(), generator())
    assert image[0, 0, 0] == -1
    assert image[0, -1, 0] == 1


@pytest.mark.parametrize("size", [(5, 9), (33, 8), (8, 8), (100, 51)])
def test_any_size_becomes_the_resolution(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "red").save(tmp_path / "a.png")
    assert load_image((tmp_path / "a.png").read_bytes(), config(crop="random"), generator()).shape == (3, 8, 8)


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    pixels = np.arange(64, dtype=np.uint16).reshape(8, 8) * 1024
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image((tmp_path / "a.png").read_bytes(), config(), generator())
    np.testing.assert_allclose((image[0] + 1) * 127.5, pixels // 256, atol=1e-3)


def decibels(found: np.ndarray, exact: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((found.astype(float) - exact) ** 2)))


@pytest.mark.parametrize("size", [(803, 603), (603, 803), (1607, 1203)])
def test_a_draft_is_not_told_from_the_whole_image(size: tuple[int, int]) -> None:
    """Odd sides: of the last pixel of a draft a part lies beyond the image, which is not to shift the others."""
    rng = np.random.default_rng(0)
    octaves = [Image.fromarray(rng.integers(96, 160, (2**n, 2**n, 3), np.uint8)) for n in range(2, 7)]
    total = sum(np.asarray(each.resize(size, Image.Resampling.BICUBIC), np.float32) - 128 for each in octaves)
    file = io.BytesIO()
    Image.fromarray((total + 128).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=95)
    found, placement = load_pixels(file.getvalue(), size[::-1], config(), (256, 256), generator())
    whole = Image.open(file).convert("RGB").resize(placement.resized[::-1], Image.Resampling.LANCZOS)
    top, left = placement.top, placement.left
    exact = np.asarray(whole)[top : top + 256, left : left + 256].transpose(2, 0, 1)
    assert decibels(found, exact) > 48
