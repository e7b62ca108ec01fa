"""Shows how well the run learnt its images: the nearest real image of each sample, and labelled grids."""

import textwrap
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data import Sample, Source
from launcher.contract.files import write_atomic
from vpred_train.arrays import FloatArray
from vpred_train.sampling.images import png, to_uint8

TILE = 96
CAPTION_LINES = 3
FONT_SIZE = 11
MARGIN = 10
PAIRS_PER_ROW = 6
ROWS_PER_GRID = 8


def evenly_spread(source: Source, count: int) -> list[Sample]:
    """Return at most `count` samples, evenly spread over the source."""
    chosen = np.linspace(0, len(source) - 1, min(count, len(source))).round().astype(int)
    return [source.sample(int(index)) for index in chosen]


def nearest_real(sampled: FloatArray, real: FloatArray) -> NDArray[np.intp]:
    """Return for each sampled image the index of the real one with the largest pixel cosine. Both are (n, 3, R, R)."""

    def unit(images: FloatArray) -> FloatArray:
        flat = images.reshape(len(images), -1).astype(np.float64)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True)

    return np.argmax(unit(sampled) @ unit(real).T, axis=1)


def write_grids(
    folder: Path, prompts: list[str], real: FloatArray, sampled: FloatArray, nearest: NDArray[np.intp]
) -> list[Path]:
    """Write grid_0.png, ...: for each prompt the real image, the sampled one and the prompt.

    The frame's colour marks hits and misses.
    """
    per_grid = PAIRS_PER_ROW * ROWS_PER_GRID
    paths = []
    for number, start in enumerate(range(0, len(prompts), per_grid)):
        rows = slice(start, start + per_grid)
        hits = nearest[rows] == np.arange(start, start + len(prompts[rows]))
        path = folder / f"grid_{number}.png"
        write_atomic(path, png(draw_grid(prompts[rows], real[rows], sampled[rows], hits)))
        paths.append(path)
    return paths


def draw_grid(prompts: list[str], real: FloatArray, sampled: FloatArray, hits: NDArray[np.bool_]) -> Image.Image:
    """Draw one page of (real, sampled) pairs with their prompts below."""
    font = ImageFont.load_default(FONT_SIZE)
    line_height = FONT_SIZE + 3
    cell_width = 2 * TILE + MARGIN
    cell_height = TILE + (CAPTION_LINES + 1) * line_height + MARGIN
    rows = -(-len(prompts) // PAIRS_PER_ROW)
    columns = min(PAIRS_PER_ROW, len(prompts))
    page = Image.new("RGB", (columns * (cell_width + MARGIN) + MARGIN, rows * cell_height + MARGIN), "white")
    canvas = ImageDraw.Draw(page)
    for index, prompt in enumerate(prompts):
        left = MARGIN + index % PAIRS_PER_ROW * (cell_width + MARGIN)
        top = MARGIN + index // PAIRS_PER_ROW * cell_height
        canvas.text((left, top), "real", "gray", font)
        canvas.text((left + TILE + 2, top), "sample, hit" if hits[index] else "sample, miss", "gray", font)
        top += line_height
        for offset, image in ((0, real[index]), (TILE + 2, sampled[index])):
            tile = Image.fromarray(to_uint8(image[None])[0]).resize((TILE, TILE), Image.Resampling.BICUBIC)
            page.paste(tile, (left + offset, top))
        color = "#2e7d32" if hits[index] else "#c62828"
        canvas.rectangle((left + TILE + 1, top - 1, left + 2 * TILE + 2, top + TILE), outline=color)
        caption = textwrap.wrap(prompt, cell_width // 6)[:CAPTION_LINES]
        canvas.text((left, top + TILE + 3), "\n".join(caption), "black", font)
    return page
