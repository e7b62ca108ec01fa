"""The objective, and the random draws that belong to a sample rather than to a rank."""

from dataclasses import dataclass

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from data import sample_generator
from vpred_train.config import PredictionType
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.diffusion.schedule import FloatArray, Schedule
from vpred_train.models.networks import Networks


@dataclass(frozen=True)
class Draws:
    """Per-sample randomness of one batch: timesteps (B,) int64, noise (B, C, H, W) float32."""

    timesteps: NDArray[np.int64]
    noise: FloatArray


def draw(
    seed: int, epochs: NDArray[np.int64], sample_ids: NDArray[np.int64], shape: tuple[int, ...], timesteps: int
) -> Draws:
    """Draw t ~ U{0 .. T-1} and noise ~ N(0, I), keyed by (seed, epoch, sample id): the same on any number of ranks."""
    chosen = np.empty(len(sample_ids), np.int64)
    noise = np.empty((len(sample_ids), *shape), np.float32)
    for row, (epoch, sample_id) in enumerate(zip(epochs, sample_ids, strict=True)):
        generator = sample_generator(seed, "diffusion", int(epoch), int(sample_id))
        chosen[row] = generator.integers(timesteps)
        noise[row] = generator.standard_normal(shape, np.float32)
    return Draws(chosen, noise)


class DiffusionLoss(nn.Cell):
    """mean over the batch of |net(z_t, t, text) - target|^2, averaged over channels and pixels; the target is v, the
    noise or the image.

    Inputs: z_0 and noise (B, C, H, W) float32, alpha and sigma (B, 1, 1, 1) float32, timesteps (B,) float32, tokens
    (B, context_length) int32. Returns a float32 scalar.
    """

    def __init__(self, networks: Networks, prediction_type: PredictionType) -> None:
        super().__init__()
        self.networks = networks
        self.target = TARGETS[prediction_type]

    def construct(
        self, z_0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor, timesteps: Tensor, tokens: Tensor
    ) -> Tensor:
        z_t = alpha * z_0 + sigma * noise
        prediction = self.networks(z_t, timesteps, tokens)
        return ((prediction - self.target(z_0, noise, alpha, sigma)) ** 2).mean()


def network_inputs(z_0: FloatArray, draws: Draws, tokens: NDArray[np.int32], schedule: Schedule) -> tuple[Tensor, ...]:
    """The arguments of `DiffusionLoss` for one batch."""
    alpha = schedule.alpha[draws.timesteps].reshape(-1, 1, 1, 1)
    sigma = schedule.sigma[draws.timesteps].reshape(-1, 1, 1, 1)
    arrays = (z_0, draws.noise, alpha, sigma, draws.timesteps.astype(np.float32), tokens)
    return tuple(Tensor.from_numpy(np.ascontiguousarray(array)) for array in arrays)
