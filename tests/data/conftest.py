"""Small image folders in the MindONE layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven 12 x 10 images, no two alike, and their img_txt.csv."""
    rng = np.random.default_rng(0)
    lines = ["dir,text"]
    for number in range(7):
        Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f'{number}.png,"caption {number}, with a comma"')
    (tmp_path / "img_txt.csv").write_text("\n".join(lines) + "\n")
    return tmp_path
