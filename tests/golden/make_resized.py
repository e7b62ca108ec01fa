"""Make resized.npz: rows and columns of images that the publishers' own code resized for FID's Inception.

    pip install --no-deps torch==2.14.1 torch-fidelity==0.4.0 clean-fid==0.1.35 pillow==13.0.0 "numpy>=2"
    python tests/golden/make_resized.py

torchmetrics' recipe is torch's interpolate with antialias=True, which is what torchmetrics 1.9.0 calls.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own usage
from cleanfid.resize import build_resizer
from seeded import resize_images
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

SIZE = (299, 299)
KEPT = [*range(0, 299, 37), 298]  # rows and columns, with the last


def main() -> None:
    """Write the input of the network, (3, 10, 10) float32 for each image and recipe."""
    found: dict[str, np.ndarray] = {}
    for name, image in resize_images().items():
        batch = torch.from_numpy(image.transpose(2, 0, 1)[None].copy()).float()
        clean = torch.from_numpy(build_resizer("clean")(image).transpose(2, 0, 1)[None].copy())
        like_tf = interpolate_bilinear_2d_like_tensorflow1x(batch, size=SIZE, align_corners=False)
        plain = F.interpolate(batch / 255, size=SIZE, mode="bilinear", align_corners=False)
        smooth = F.interpolate(batch, size=SIZE, mode="bilinear", align_corners=False, antialias=True)
        inputs = {
            "clean": (clean - 128) / 128,
            "tf1": (like_tf - 128) / 128,
            "pytorch": 2 * plain - 1,
            "torchmetrics": (smooth - 128) / 128,
        }
        found |= {f"{recipe}.{name}": value[0][:, KEPT][:, :, KEPT].numpy() for recipe, value in inputs.items()}
    np.savez_compressed(Path(__file__).with_name("resized.npz"), **found)


if __name__ == "__main__":
    main()
