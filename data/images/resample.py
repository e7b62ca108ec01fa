"""Resizes by Lanczos as banded matrix products: several times as fast as Pillow, and equal to it except for rounding.

Pillow rounds to bytes between the two passes. This module rounds once at the end.
"""

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from data.images.size import Size

LOBES = 3
CHANNELS = 3
BLOCK = 16  # output pixels of one product: a larger block holds more zeros, a smaller one needs more calls
BANDS = 4
LARGEST_PRODUCT = 1 << 19  # multiply-adds; OpenBLAS gives larger ones to threads, which here wait more than work

Band = tuple[slice, slice, NDArray[np.float32]]


def resample(
    pixels: NDArray[np.uint8], box: tuple[float, float, float, float], size: Size, mirror: bool = False
) -> NDArray[np.uint8]:
    """Resize a box of an image with antialiasing. The filter also reads pixels beyond the box.

    pixels: (H, W, 3) uint8.
    box: left, top, right and bottom in pixels, as Pillow takes it.
    size: size of the result.
    mirror: left and right are exchanged.
    Returns (3, height, width) uint8.
    """
    left, top, right, bottom = box
    height, width = size
    across = list(_bands(left, right, pixels.shape[1], width))
    down = list(_bands(top, bottom, pixels.shape[0], height))
    first, last = across[0][1].start, across[-1][1].stop
    columns = last - first
    # A few bands are processed at a time, so that their floats stay in the processor's cache.
    tall = np.empty((CHANNELS, BLOCK * BANDS, columns), np.float32)
    resized = np.empty((CHANNELS, height, width), np.uint8)
    for begin in range(0, len(down), BANDS):
        bands = down[begin : begin + BANDS]
        top_row, last_row = bands[0][0].start, bands[-1][0].stop
        for target, source, weights in bands:
            shrunk = tall[:, target.start - top_row : target.stop - top_row]
            _shrink_rows(pixels[source, first:last], weights, shrunk)
        part = np.ascontiguousarray(tall[:, : last_row - top_row]).reshape(-1, columns)
        values = np.empty((len(part), width), np.float32)
        for target, source, weights in across:
            np.matmul(part[:, source.start - first : source.stop - first], weights.T, out=values[:, target])
        values += 0.5  # so that the cast to uint8 rounds to the nearest
        np.minimum(np.maximum(values, 0, out=values), 255, out=values)
        resized[:, top_row:last_row] = values.reshape(CHANNELS, -1, width)
    return resized[:, :, ::-1] if mirror else resized


def _shrink_rows(pixels: NDArray[np.uint8], weights: NDArray[np.float32], out: NDArray[np.float32]) -> None:
    """Multiply `weights` (outputs, inputs) by pixels (inputs, columns, 3), into `out` (3, outputs, columns)."""
    step = max(1, LARGEST_PRODUCT // weights.size)
    for start in range(0, pixels.shape[1], step):
        columns = slice(start, start + step)
        floats = pixels[:, columns].transpose(2, 0, 1).astype(np.float32, order="C")
        np.matmul(weights, floats, out=out[:, :, columns])


def _bands(start: float, stop: float, count: int, wanted: int) -> Iterator[Band]:
    """Yield (output pixels, the input pixels that they need, weights (outputs, inputs) float32) of each band.

    The bands resize the range `start` to `stop` of `count` pixels to `wanted` pixels.
    """
    scale = (stop - start) / wanted
    stretch = max(scale, 1.0)  # an image that is enlarged is not smoothed
    reach = LOBES * stretch
    centres = start + (np.arange(wanted) + 0.5) * scale
    firsts = np.maximum((centres - reach + 0.5).astype(np.int64), 0)
    taps = np.arange(2 * math.ceil(reach) + 1)
    inputs = firsts[:, None] + taps
    distances = (inputs + 0.5 - centres[:, None]) / stretch
    weights = np.sinc(distances) * np.sinc(distances / LOBES)
    weights[(np.abs(distances) >= LOBES) | (inputs >= count)] = 0
    weights /= weights.sum(1, keepdims=True)
    for begin in range(0, wanted, BLOCK):
        end = min(begin + BLOCK, wanted)
        first, last = int(firsts[begin]), int(firsts[end - 1]) + len(taps)
        band = np.zeros((end - begin, last - first), np.float32)
        np.put_along_axis(band, inputs[begin:end] - first, weights[begin:end].astype(np.float32), 1)
        source = slice(first, min(last, count))
        yield slice(begin, end), source, band[:, : source.stop - first]
