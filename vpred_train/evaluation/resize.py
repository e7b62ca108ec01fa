"""Makes the input of FID's Inception from an image, by each of the recipes that published FIDs used.

All recipes squash an image to SIDE x SIDE pixels, and differ in the filter. A FID has a meaning only together with the
name of its recipe (Parmar et al. 2022). Positions are float32 where the publishers' are.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from launcher.contract.config import ConfigError

SIDE = 299  # pixels
Float32 = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def clean(image: Pixels) -> Float32:
    """Return clean-fid's input: Pillow's antialiased bicubic filter in float32, clipped to 0..255, not rounded."""
    size, bicubic = (SIDE, SIDE), Image.Resampling.BICUBIC
    channels = [Image.fromarray(image[:, :, c].astype(np.float32)).resize(size, bicubic) for c in range(3)]
    return _by_128(np.stack([np.asarray(channel) for channel in channels]).clip(0, 255))


def tf1(image: Pixels) -> Float32:
    """Return TensorFlow 1's input, also torch-fidelity's and guided-diffusion's: bilinear, corner to corner.

    Pixel i lies at i * (in / out): neither half a pixel of offset nor a filter against aliasing.
    """
    return _by_128(_tf1_bilinear(image.astype(np.float32)))


def pytorch(image: Pixels) -> Float32:
    """Return pytorch-fid's input, also MLPerf's: bilinear between pixel centres, no filter against aliasing."""
    values = _channels(image) / np.float32(255)
    for axis in (2, 1):
        values = _half_pixel_bilinear(values, axis)
    return 2 * values - 1


def torchmetrics(image: Pixels) -> Float32:
    """Return torchmetrics' input: bilinear between pixel centres with a filter as wide as the step, float32."""
    values = _channels(image)
    for axis in (2, 1):
        matrix = _triangle_matrix(values.shape[axis])
        values = np.moveaxis(np.moveaxis(values, axis, -1) @ matrix.T, -1, axis)
    return _by_128(values.astype(np.float32))


def mindone(image: Pixels) -> Float32:
    """Return the input of MindONE's eval_fid with `--backend ms`: tf1's filter on values of 0..1, then 2 x - 1."""
    return 2 * _tf1_bilinear(image.astype(np.float32) / np.float32(255)) - 1


RECIPES: dict[str, Callable[[Pixels], Float32]] = {
    "clean": clean,
    "tf1": tf1,
    "pytorch": pytorch,
    "torchmetrics": torchmetrics,
    "mindone": mindone,
}
REFUSED = {
    "mindone-pt": "it rounds OpenCV's resize to uint8 without a filter and resizes a second time; "
    "mindone is the recipe of MindONE's default backend",
}


def recipe_of(name: str) -> Callable[[Pixels], Float32]:
    """Return a recipe: a function from (height, width, 3) uint8 to (3, SIDE, SIDE) float32 in about -1..1.

    Raises ConfigError: when the name is unknown or refused.
    """
    if name in REFUSED:
        raise ConfigError(f"recipe {name} is not computed: {REFUSED[name]}")
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is unknown; known are {', '.join(RECIPES)}")
    return RECIPES[name]


def _channels(image: Pixels) -> Float32:
    return image.transpose(2, 0, 1).astype(np.float32)


def _by_128(values: Float32) -> Float32:
    return (values - np.float32(128)) / np.float32(128)


def _tf1_bilinear(values: Float32) -> Float32:
    """Return (3, SIDE, SIDE) of (height, width, 3) float32, with the order of operations of TensorFlow's kernel."""
    height, width = values.shape[:2]
    top, bottom, down = _tf1_neighbours(height)
    left, right, along = _tf1_neighbours(width)
    down, along = down[:, None, None], along[None, :, None]
    upper, lower = values[top], values[bottom]
    upper = upper[:, left] + (upper[:, right] - upper[:, left]) * along
    lower = lower[:, left] + (lower[:, right] - lower[:, left]) * along
    return np.ascontiguousarray((upper + (lower - upper) * down).transpose(2, 0, 1))


def _tf1_neighbours(length: int) -> tuple[NDArray[np.intp], NDArray[np.intp], Float32]:
    at = np.arange(SIDE, dtype=np.float32) * np.float32(length / SIDE)
    first = np.floor(at).astype(np.intp)
    return first, np.minimum(first + 1, length - 1), at - first.astype(np.float32)


def _half_pixel_bilinear(values: Float32, axis: int) -> Float32:
    length = values.shape[axis]
    # torch rounds scale * centre - 0.5 to float32 once, as a fused multiply-add does
    exact = float(np.float32(length / SIDE)) * (np.arange(SIDE) + 0.5) - 0.5
    at = np.maximum(exact, 0).astype(np.float32)
    first = np.minimum(np.floor(at).astype(np.intp), length - 1)
    shape = [1, 1, 1]
    shape[axis] = SIDE
    part = (at - first.astype(np.float32)).reshape(shape)
    following = np.take(values, np.minimum(first + 1, length - 1), axis)
    return (1 - part) * np.take(values, first, axis) + part * following


def _triangle_matrix(length: int) -> Float32:
    """Return (SIDE, length): the weights of a triangle as wide as the step between outputs, at least one pixel."""
    step, half_pixel = np.float32(length / SIDE), np.float32(0.5)
    centres = (np.arange(SIDE, dtype=np.float32) + half_pixel) * step
    distances = np.arange(length, dtype=np.float32) + half_pixel - centres[:, None]
    weights = np.maximum(1 - np.abs(distances) / max(step, np.float32(1)), 0)
    return weights / weights.sum(axis=1, keepdims=True)
