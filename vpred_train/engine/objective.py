"""Defines the objective, and the random draws, which depend on the sample and not on the rank."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from data import Batch, batch_generator, sample_generator
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.diffusion.timesteps import timestep_cdf, timesteps_at
from vpred_train.diffusion.weighting import image_weights, loss_weights, weight_mass
from vpred_train.host_copies import to_device
from vpred_train.models import indexing
from vpred_train.models.networks import Networks


@dataclass(frozen=True)
class Draws:
    """Holds the per-sample randomness of one batch.

    timesteps: (B,) int64
    noise: (B, C, H, W) float32, the noise of the target
    input_noise: (B, C, H, W) float32, the noise that is mixed into the network's input
    """

    timesteps: NDArray[np.int64]
    noise: FloatArray
    input_noise: FloatArray


class Objective:
    """Holds what is fixed before the first step, and draws timesteps and noise.

    schedule: the noise schedule
    cdf: cumulative distribution of the drawn timesteps
    weights: loss weight of each timestep, (T,) float32
    weight_mass: distribution of the weight over log SNR
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.schedule = make_schedule(config.diffusion)
        self.cdf = timestep_cdf(config.objective, config.diffusion.timesteps)
        snr, prediction_type = self.schedule.snr, config.diffusion.prediction_type
        self.weights = loss_weights(config.objective, prediction_type, snr).astype(np.float32)
        self.weight_mass = weight_mass(image_weights(config.objective, prediction_type, snr), np.diff(self.cdf), snr)

    def draw(self, batch: Batch, shape: tuple[int, ...]) -> Draws:
        """Draw timesteps and noise for latents of `shape` (C, H, W).

        Draws are keyed by (seed, epoch, sample id), so they are the same on any number of ranks.
        Strata are those of the global batch.
        Offset noise: noise + s n_c, n_c ~ N(0, 1) for each channel (Guttenberg 2023), in target and input.
        Input perturbation: noise + s n in the input alone (Ning et al. 2023, arXiv 2301.11706).
        """
        objective, size = self.config.objective, len(batch.sample_ids)
        timesteps, uniform = np.empty(size, np.int64), np.empty(size)
        noise, perturbation = (np.zeros((size, *shape), np.float32) for _ in range(2))
        offset = np.empty((size, shape[0], 1, 1), np.float32)
        for row, (epoch, sample_id) in enumerate(zip(batch.epochs, batch.sample_ids, strict=True)):
            generator = sample_generator(self.config.seed, "diffusion", int(epoch), int(sample_id))
            # All are drawn in a fixed order, used or not, so that turning one on changes no other.
            timesteps[row] = generator.integers(self.config.diffusion.timesteps)
            noise[row] = generator.standard_normal(shape, np.float32)
            uniform[row] = generator.random()
            offset[row] = generator.standard_normal(offset.shape[1:], np.float32)
            if objective.input_perturbation:
                perturbation[row] = generator.standard_normal(shape, np.float32)
        if objective.stratified_timesteps:
            strata = batch_generator(self.config.seed, batch.samples_seen).permutation(self.config.global_batch)
            uniform = (strata[batch.places] + uniform) / self.config.global_batch
        if objective.stratified_timesteps or objective.timestep_distribution != "uniform":
            timesteps = timesteps_at(uniform, self.cdf)
        if objective.offset_noise:
            noise += np.float32(objective.offset_noise) * offset
        return Draws(timesteps, noise, noise + np.float32(objective.input_perturbation) * perturbation)

    def network_inputs(
        self, z_0: FloatArray, draws: Draws, text: NDArray[Any], loss_scale: float = 1.0
    ) -> tuple[Tensor, ...]:
        """Make the arguments of `DiffusionLoss` for one batch. z_t and target are computed in float32 on the host.

        loss_scale: multiplies the weights, and so loss and gradient
        """
        alpha, sigma = self.levels(draws)
        z_t = alpha * z_0 + sigma * draws.input_noise
        target = TARGETS[self.config.diffusion.prediction_type](z_0, draws.noise, alpha, sigma)
        return (to_device(z_t), to_device(target), *self.conditions(draws, text, loss_scale))

    def levels(self, draws: Draws) -> tuple[FloatArray, FloatArray]:
        """Return alpha and sigma of each latent, (B, 1, 1, 1) float32."""
        alpha, sigma = (table[draws.timesteps] for table in (self.schedule.alpha, self.schedule.sigma))
        return alpha.reshape(-1, 1, 1, 1), sigma.reshape(-1, 1, 1, 1)

    def conditions(self, draws: Draws, text: NDArray[Any], loss_scale: float) -> tuple[Tensor, Tensor, Tensor]:
        """Make the last arguments of `DiffusionLoss`: weight, timesteps and text."""
        weights = self.weights[draws.timesteps] * np.float32(loss_scale)
        return to_device(weights), to_device(draws.timesteps.astype(np.float32)), to_device(text)


class DiffusionLoss(nn.Cell):
    """Computes the mean over the batch of weight |net(z_t, t, text) - target|^2, averaged over channels and pixels.

    Inputs: z_t and target (B, C, H, W) float32, weight and timesteps (B,) float32, text as `Networks` takes it.
    Returns a float32 scalar.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks
        self.mean = indexing.chosen().mean

    def construct(self, z_t: Tensor, target: Tensor, weight: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        error = self.networks(z_t, timesteps, text) - target
        return self.mean(weight * self.mean(error**2, (1, 2, 3)))
