"""Prepared images against torchvision's transforms in open_clip (tests/golden/make_networks.py): equal bytes."""

from typing import Literal

import numpy as np
import pytest
from PIL import Image

from golden.seeded import odd_images
from support import GOLDEN
from vpred_train.evaluation.networks.image_recipe import ImageRecipe

GOLDENS = np.load(GOLDEN / "networks.npz")


@pytest.mark.parametrize("fit", ["shortest", "squash"])
@pytest.mark.parametrize("name", list(odd_images()))
def test_pixels_equal_torchvisions(name: str, fit: Literal["shortest", "squash"]) -> None:
    found = ImageRecipe(32, fit=fit).pixels(odd_images()[name])
    np.testing.assert_array_equal(found.transpose(2, 0, 1), GOLDENS[f"prepared_{fit}_{name}"])


@pytest.mark.parametrize("fit", ["shortest", "squash"])
def test_scaled_values_equal_torchvisions(fit: Literal["shortest", "squash"]) -> None:
    found = ImageRecipe(32, fit=fit)(odd_images()["portrait"])
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, GOLDENS[f"scaled_{fit}"])


def test_an_image_too_narrow_for_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="it has 1 x 3000 pixels, too narrow"):
        ImageRecipe(224).pixels(Image.new("RGB", (1, 3000)))
    assert ImageRecipe(224, fit="squash").pixels(Image.new("RGB", (1, 3000))).shape == (224, 224, 3)


def test_a_recipes_text_holds_all_that_changes_a_pixel() -> None:
    recipes = [
        ImageRecipe(224),
        ImageRecipe(336),
        ImageRecipe(224, fit="squash"),
        ImageRecipe(224, (0.5,) * 3),
        ImageRecipe(224, std=(0.5,) * 3),
    ]
    assert len({recipe.text for recipe in recipes}) == len(recipes)
