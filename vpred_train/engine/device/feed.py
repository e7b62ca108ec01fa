"""Turns a batch into the arguments of the loss. Latents that an autoencoder makes of it never leave the device."""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn, ops

from data import Batch
from vpred_train.config.diffusion import PredictionType
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.engine.inputs import ModelInputs, OnlineInputs, posterior_generators
from vpred_train.engine.objective import Objective
from vpred_train.host_copies import to_device
from vpred_train.models.autoencoder_kl import AutoencoderKL
from vpred_train.models.latents import LatentSpace

LossArguments = tuple[Tensor, ...]
Feed = Callable[[Batch, float], LossArguments]  # (this rank's images, loss scale)


def make_feed(inputs: ModelInputs, objective: Objective) -> Feed:
    """Return what makes the arguments of `DiffusionLoss`.

    The random numbers are drawn on the host in any case, keyed by the sample.
    """
    if isinstance(inputs, OnlineInputs) and isinstance(inputs.latents, LatentSpace):
        return EncodedFeed(inputs, inputs.latents, objective)

    def feed(batch: Batch, loss_scale: float) -> LossArguments:
        z_0, text = inputs.of_batch(batch)
        return objective.network_inputs(z_0, objective.draw(batch, z_0.shape[1:]), text, loss_scale)

    return feed


class NoisedLatents(nn.Cell):
    """Encodes images, draws from their posteriors, and mixes the noise in.

    Inputs: images (B, 3, H, W) in [-1, 1]; posterior_noise, noise and input_noise (B, C, h, w); alpha and sigma
    (B, 1, 1, 1). All are float32.
    Returns z_t and the target, (B, C, h, w) float32.
    """

    def __init__(self, autoencoder: AutoencoderKL, scale: float, prediction_type: PredictionType) -> None:
        super().__init__()
        self.autoencoder, self.scale, self.target = autoencoder, scale, TARGETS[prediction_type]

    def construct(
        self, images: Tensor, posterior_noise: Tensor, noise: Tensor, input_noise: Tensor, alpha: Tensor, sigma: Tensor
    ) -> tuple[Tensor, Tensor]:
        mean, log_variance = self.autoencoder.posterior(self.autoencoder.encode(images))
        z_0 = (mean + ops.exp(0.5 * log_variance) * posterior_noise) * self.scale
        return alpha * z_0 + sigma * input_noise, self.target(z_0, noise, alpha, sigma)


class EncodedFeed:
    """Encodes the images of each batch with the autoencoder."""

    def __init__(self, inputs: OnlineInputs, latents: LatentSpace, objective: Objective) -> None:
        self.inputs, self.latents, self.objective = inputs, latents, objective
        prediction_type = objective.config.diffusion.prediction_type
        self.noised = NoisedLatents(latents.autoencoder, latents.config.scale, prediction_type)

    def __call__(self, batch: Batch, loss_scale: float) -> LossArguments:
        shape = self.latents.shape_of(batch.images)
        generators = posterior_generators(self.inputs.seed, batch)
        posterior_noise = np.stack([generator.standard_normal(shape, np.float32) for generator in generators])
        draws = self.objective.draw(batch, shape)
        noises = (posterior_noise, draws.noise, draws.input_noise)
        noised = self.noised(*map(to_device, (batch.images, *noises, *self.objective.levels(draws))))
        text = self.inputs.tokenizer(batch.captions)
        return (*noised, *self.objective.conditions(draws, text, loss_scale))
