"""Image to latent and back, for training in pixel space: nothing to learn, nothing lost.

Images are (B, 3, H, W) float32 in [-1, 1]; latents (B, 3 f^2, H/f, W/f).
"""

import numpy as np
from numpy.typing import NDArray


class SpaceToDepth:
    """Each f x f patch of pixels becomes the channels of one latent pixel; factor 1 is the identity."""

    def __init__(self, factor: int) -> None:
        self.factor = factor

    def encode(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        batch, channels, height, width = images.shape
        f = self.factor
        patches = images.reshape(batch, channels, height // f, f, width // f, f).transpose(0, 1, 3, 5, 2, 4)
        return np.ascontiguousarray(patches.reshape(batch, channels * f * f, height // f, width // f))

    def decode(self, latents: NDArray[np.float32]) -> NDArray[np.float32]:
        batch, channels, height, width = latents.shape
        f = self.factor
        patches = latents.reshape(batch, channels // (f * f), f, f, height, width).transpose(0, 1, 4, 2, 5, 3)
        return np.ascontiguousarray(patches.reshape(batch, channels // (f * f), height * f, width * f))
