"""Recipes of FID's input against the publishers' own code (golden/resized.npz) and against loops in float64."""

from pathlib import Path

import numpy as np
import pytest

from golden.seeded import resize_images
from launcher.contract.config import ConfigError
from vpred_train.evaluation.resize import RECIPES, SIDE, recipe_of

GOLDEN = Path(__file__).parents[2] / "golden/resized.npz"
KEPT = [*range(0, 299, 37), 298]
IMAGES = resize_images()
GREY_LEVEL = 1 / 127.5  # in the range of the network


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("recipe", ["clean", "tf1"])
def test_bytes_equal_the_publishers(recipe: str, name: str, golden: dict[str, np.ndarray]) -> None:
    found = recipe_of(recipe)(IMAGES[name])
    assert (found.shape, found.dtype) == ((3, SIDE, SIDE), np.float32)
    np.testing.assert_array_equal(found[:, KEPT][:, :, KEPT], golden[f"{recipe}.{name}"])


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("recipe", ["pytorch", "torchmetrics"])
def test_grey_levels_equal_torchs_interpolation(recipe: str, name: str, golden: dict[str, np.ndarray]) -> None:
    found = recipe_of(recipe)(IMAGES[name])
    assert (found.shape, found.dtype) == ((3, SIDE, SIDE), np.float32)
    np.testing.assert_allclose(found[:, KEPT][:, :, KEPT], golden[f"{recipe}.{name}"], rtol=0, atol=1e-4 * GREY_LEVEL)


def sample(image: np.ndarray, recipe: str, row: int, column: int) -> np.ndarray:
    """One output pixel (3,) in float64, by the formula of the recipe."""
    weights = []
    for out, length in ((row, image.shape[0]), (column, image.shape[1])):
        step = length / SIDE
        at = out * step if recipe in ("tf1", "mindone") else max((out + 0.5) * step - 0.5, 0)
        line = np.zeros(length)
        if recipe == "torchmetrics":
            half = max(step, 1)
            for i in range(length):
                line[i] = max(0, 1 - abs(i + 0.5 - (out + 0.5) * step) / half)
            line /= line.sum()
        else:
            first = min(int(at), length - 1)
            line[first] += 1 - (at - first)
            line[min(first + 1, length - 1)] += at - first
        weights.append(line)
    value = np.einsum("h,w,hwc->c", *weights, image.astype(np.float64))
    return value / 127.5 - 1 if recipe in ("pytorch", "mindone") else (value - 128) / 128


@pytest.mark.parametrize("name", ["1x500", "41x97", "300x401", "checkerboard"])
@pytest.mark.parametrize("recipe", ["tf1", "pytorch", "torchmetrics", "mindone"])
def test_pixels_equal_the_formula_in_float64(recipe: str, name: str) -> None:
    found = recipe_of(recipe)(IMAGES[name])
    for row, column in [(0, 0), (298, 298), (17, 203), (150, 149), (298, 3)]:
        expected = sample(IMAGES[name], recipe, row, column)
        np.testing.assert_allclose(found[:, row, column], expected, rtol=0, atol=0.02 * GREY_LEVEL)


def test_an_image_of_the_side_stays_as_it_is() -> None:
    image = IMAGES["299x299"]
    for name, recipe in RECIPES.items():
        scaled = image / 127.5 - 1 if name in ("pytorch", "mindone") else (image - 128.0) / 128
        np.testing.assert_allclose(recipe(image), scaled.transpose(2, 0, 1), rtol=0, atol=1e-4 * GREY_LEVEL)


def test_recipes_differ_by_more_than_a_grey_level() -> None:
    made = {name: recipe(IMAGES["1333x800"]) for name, recipe in RECIPES.items()}
    for first, second in (("clean", "tf1"), ("tf1", "pytorch"), ("pytorch", "torchmetrics"), ("clean", "torchmetrics")):
        assert np.abs(made[first] - made[second]).max() > 10 * GREY_LEVEL
    assert 0 < np.abs(made["tf1"] - made["mindone"]).max() < 1.5 * GREY_LEVEL  # the scale alone


def test_other_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="mindone-pt is not computed: it rounds OpenCV's resize"):
        recipe_of("mindone-pt")
    with pytest.raises(ConfigError, match="'bicubic' is unknown; known are clean, tf1, pytorch, torchmetrics, mindone"):
        recipe_of("bicubic")
