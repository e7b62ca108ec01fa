"""A finetuning of a narrow Stable Diffusion 2 on four images."""

from pathlib import Path

from support.jobs import write_images
from support.weights_files import write_tiny

RECIPE = """
total_samples: 12
global_batch: 4
final_samples: 2
data: {path: images, resolution: 16}
pretrained: {path: published}
diffusion: {zero_terminal_snr: true}
optimizer: {learning_rate: 1e-3}
checkpoint: {every_samples: 12}
sampling: {steps: 2, batch_size: 1}
"""


def prepare(root: Path) -> None:
    """A diffusers folder, `published`, and four captioned images."""
    write_tiny(root / "published", "diffusers")
    write_images(root / "images", 4)
