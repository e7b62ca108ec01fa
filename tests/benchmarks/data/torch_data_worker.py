"""torch's side of `data_loading.py`: FOLDER WORKERS BATCH RESOLUTION; prints the seconds of one pass.

It imports nothing of the project, and does with Pillow what `data/images/transforms.py` does.
"""

import io
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset

DRAFTS = {8: 1.25, 4: 1.25, 2: 1.0}


class Images(Dataset):
    """The files of a folder, so often that the start of the workers is behind when the clock starts."""

    def __init__(self, folder: Path, side: int, passes: int) -> None:
        self.files, self.side, self.passes = sorted(folder.glob("*.jpg")), side, passes

    def __len__(self) -> int:
        return self.passes * len(self.files)

    def __getitem__(self, index: int) -> torch.Tensor:
        side, rng = self.side, np.random.default_rng(index)
        file = Image.open(io.BytesIO(self.files[index % len(self.files)].read_bytes()))
        scale = side / min(file.size)
        full_width, full_height = file.size
        width, height = (max(side, round(edge * scale)) for edge in file.size)
        divisor = next((each for each, margin in DRAFTS.items() if scale * each * margin <= 1), 1)
        if divisor > 1:
            file.draft(None, (full_width // divisor, full_height // divisor))
        image = ImageOps.exif_transpose(file).convert("RGB")
        left, top = rng.integers(width - side + 1), rng.integers(height - side + 1)
        across, down = full_width / width / divisor, full_height / height / divisor
        box = (left * across, top * down, (left + side) * across, (top + side) * down)
        image = image.resize((side, side), Image.Resampling.LANCZOS, box=box)
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        return pixels.to(torch.float32).div_(127.5).sub_(1)


def main() -> None:
    folder, workers, batch, side = Path(sys.argv[1]), *map(int, sys.argv[2:])
    torch.set_num_threads(1)
    images = Images(folder, side, passes=2)
    batches = iter(DataLoader(images, batch, shuffle=True, num_workers=workers, prefetch_factor=2))
    counted = len(images.files) // batch
    for _ in range(len(images) // batch - counted - 4):
        next(batches)
    started = time.perf_counter()
    for _ in range(counted):  # and a few are left, so that all of these are made while the workers are busy
        next(batches)
    print(json.dumps(time.perf_counter() - started))


if __name__ == "__main__":
    main()
