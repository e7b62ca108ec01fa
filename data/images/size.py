"""Names the two sides of an image, so that nobody confuses their order. Pillow alone uses (width, height)."""

from typing import NamedTuple


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width} x {self.height}"


def size_of_pil(pair: tuple[int, int]) -> Size:
    """Return the Size of Pillow's (width, height)."""
    width, height = pair
    return Size(height, width)
