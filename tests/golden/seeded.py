"""Weights that a golden script and its test both derive from a tensor's name, so that no file has to hold them."""

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Random float32 of a network's usual size; norms' gains (1-D weights) lie around one."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 100
    gain = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    return (gain + rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)


def inception_weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Return seeded tensors of an Inception; variances lie above one half."""
    found = {name: weights(name, shape) for name, shape in shapes.items()}
    return {name: 0.5 + np.abs(value) if name.endswith("running_var") else value for name, value in found.items()}


def photographs(count: int, side: int) -> NDArray[np.uint8]:
    """Return smooth images with noise (count, 3, side, side), each another."""
    rng = np.random.default_rng(7)
    across = np.linspace(0, 1, side)
    slopes = rng.uniform(-2, 2, (count, 3, 2, 1, 1))
    smooth = np.sin(3 * (slopes[:, :, 0] * across + slopes[:, :, 1] * across[:, None]))
    return np.clip(127 + 90 * smooth + rng.normal(0, 25, (count, 3, side, side)), 0, 255).astype(np.uint8)


def odd_images() -> dict[str, Image.Image]:
    """Return Pillow images of the sizes and modes that users have."""
    rng = np.random.default_rng(3)

    def colours(width: int, height: int, channels: int = 3) -> NDArray[np.uint8]:
        return rng.integers(0, 256, (height, width, channels), dtype=np.uint8)

    grey16 = (rng.integers(0, 1 << 16, (50, 41))).astype(np.uint16)
    photograph = Image.fromarray(np.ascontiguousarray(photographs(1, 90)[0].transpose(1, 2, 0)))
    return {
        "portrait": Image.fromarray(colours(41, 97)),
        "landscape": photograph.resize((133, 60), Image.Resampling.BILINEAR),
        "square": photograph,
        "as_it_is": Image.fromarray(colours(32, 32)),
        "tiny": Image.fromarray(colours(1, 1)),
        "line": Image.fromarray(colours(70, 1)),
        "grey": Image.fromarray(colours(45, 37)[:, :, 0]),
        "grey_alpha": Image.fromarray(colours(45, 37, 2), "LA"),
        "rgba": Image.fromarray(colours(40, 50, 4)),
        "cmyk": Image.fromarray(colours(40, 50, 4), "CMYK"),
        "grey16": Image.fromarray(grey16),
        "palette": photograph.quantize(17),
        "bilevel": photograph.convert("1"),
    }


def resize_images() -> dict[str, NDArray[np.uint8]]:
    """Return (height, width, 3) images whose sizes ask something of a resize to 299 pixels."""
    rng = np.random.default_rng(4)
    sizes = [(1, 1), (1, 500), (41, 97), (299, 299), (300, 401), (512, 512), (1333, 800)]
    noise = {f"{h}x{w}": rng.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in sizes}
    rows, columns = np.indices((512, 384))
    ramp = np.repeat((columns * 255 // 383)[:, :, None], 3, axis=2).astype(np.uint8)
    board = np.repeat(((rows + columns) % 2 * 255)[:, :, None], 3, axis=2).astype(np.uint8)
    return {**noise, "ramp": ramp, "checkerboard": board}
