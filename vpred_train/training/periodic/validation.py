"""Measures the loss on held-out images by noise level, with the same noise every time and on any number of ranks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from mindspore import Tensor, nn
from numpy.typing import NDArray

from data import Source, sample_generator
from vpred_train.arrays import FloatArray
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.parameterization import TARGETS
from vpred_train.diffusion.schedule import make_schedule
from vpred_train.diffusion.weighting import UNIFORM
from vpred_train.distributed.collectives import Collective
from vpred_train.engine.inputs import ModelInputs, Text
from vpred_train.engine.protocol import TrainingState
from vpred_train.host_copies import to_host
from vpred_train.models.networks import Networks
from vpred_train.training.hooks.hook import Hook, ValidationLoss
from vpred_train.training.periodic.periodic import Boundary, Observer


@dataclass(frozen=True)
class _ImageBatch:
    """Holds latents (B, C, H, W), text and sample ids of held-out images.

    A short batch is filled up with its first image, so that only one shape is compiled.
    """

    z_0: FloatArray
    text: Text
    sample_ids: list[int]


class SquaredError(nn.Cell):
    """Computes |net - target|^2 of each image, mean over channels and pixels.

    z_t and target (B, C, H, W) float32, timesteps (B,) float32, text as `Networks` takes it -> (B,) float32.
    """

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.networks = networks

    def construct(self, z_t: Tensor, target: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        return ((self.networks(z_t, timesteps, text) - target) ** 2).mean((1, 2, 3))


class Validation(Observer):
    """Measures the held-out losses. Every rank gets the same losses.

    bins: bounds of the bins; bin b holds the timesteps [bins[b], bins[b + 1]).
    """

    cause = "validation"

    def __init__(
        self,
        config: TrainConfig,
        networks: Networks,
        state: TrainingState,
        held_out: Source,
        collective: Collective,
        inputs: ModelInputs,
    ) -> None:
        if config.validation is None:
            raise ValueError("the recipe has no validation")
        self.config, self.settings, self.state = config, config.validation, state
        self.held_out, self.collective = held_out, collective
        super().__init__(config.validation.every_samples)
        self.measured: dict[int, list[ValidationLoss]] = {}  # the last losses, by the samples seen
        self.schedule = make_schedule(config.diffusion)
        # Factors that turn squared errors of a predicted noise or image into those of v at the same z_t.
        prediction_type, snr = config.diffusion.prediction_type, self.schedule.snr
        self.to_v = UNIFORM["v"](snr) / UNIFORM[prediction_type](snr)
        self.target_of = TARGETS[prediction_type]
        self.bins = [config.diffusion.timesteps * b // self.settings.bins for b in range(self.settings.bins + 1)]
        self.inputs = inputs
        self.squared_error = SquaredError(networks)

    def observe(self, now: Boundary, hooks: Hook) -> None:
        losses = self.losses()
        self.measured = {now.samples_seen: losses}
        hooks.on_validation(now.step, now.samples_seen, losses)

    def loss_at(self, samples_seen: int) -> float | None:
        """Return the loss of `ema.use` over all timesteps, if it was measured at this time and is finite."""
        used = [each.loss for each in self.measured.get(samples_seen, []) if each.weights == self.config.ema.used]
        return used[0] if used and math.isfinite(used[0]) else None  # the first loss covers all timesteps

    def losses(self) -> list[ValidationLoss]:
        """Measure the raw weights, then the average in use: for each the loss over all timesteps, then of each bin."""
        raw = self._losses_of("raw")
        with self.state.showing(self.config.ema.used):
            return raw + self._losses_of(self.config.ema.used)

    def _losses_of(self, weights: str) -> list[ValidationLoss]:
        errors = self.image_errors()
        last = self.bins[-1]
        ranges = [(0, last, errors.mean(1))]  # an image's bins are dependent, so its mean is one observation
        ranges += [(self.bins[b], self.bins[b + 1], errors[:, b]) for b in range(self.settings.bins)]
        return [self._loss(weights, first, stop, values) for first, stop, values in ranges]

    def _loss(self, weights: str, first: int, stop: int, errors: FloatArray) -> ValidationLoss:
        """Make the loss of timesteps [first, stop) from the images' errors (n,).

        standard error = sqrt(sum (e - mean)^2 / (n - 1) / n)
        """
        with np.errstate(divide="ignore"):
            high, low = np.log(self.schedule.snr[[first, stop - 1]])
        deviation = float(errors.std(ddof=1)) / math.sqrt(len(errors))
        mean = float(errors.mean())
        return ValidationLoss(weights, first, stop - 1, float(high), float(low), mean, deviation, len(errors))

    def image_errors(self) -> FloatArray:
        """Return squared errors of v with the networks' current weights, mean over draws: (images, bins) float64."""
        mine = [self._batch_errors(batch) for batch in self._batches]
        # Batches are never split, so that an image has the same neighbours in its batch on any number of ranks.
        by_rank = self.collective.allgather_object(mine)
        world_size = len(by_rank)
        count = sum(len(share) for share in by_rank)
        return np.concatenate([by_rank[number % world_size][number // world_size] for number in range(count)])

    def _batch_errors(self, batch: _ImageBatch) -> FloatArray:
        """Return the errors of one batch, (images, bins)."""
        images, settings = len(batch.sample_ids), self.settings
        errors = np.zeros((images, settings.bins))
        for b in range(settings.bins):
            generators = [sample_generator(settings.seed, "validation", b, number) for number in batch.sample_ids]
            for _ in range(settings.draws):
                t, noise = self._draw(b, generators, batch.z_0.shape)
                alpha, sigma = (table[t].reshape(-1, 1, 1, 1) for table in (self.schedule.alpha, self.schedule.sigma))
                target = self.target_of(batch.z_0, noise, alpha, sigma)
                inputs = (alpha * batch.z_0 + sigma * noise, target, t.astype(np.float32), batch.text)
                found = to_host(self.squared_error(*(Tensor(each) for each in inputs)))
                errors[:, b] += (found * self.to_v[t])[:images] / settings.draws
        return errors

    def _draw(
        self, b: int, generators: Sequence[np.random.Generator], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.int64], FloatArray]:
        """Draw timesteps (B,) within bin b, and noise of `shape`. Filler rows are at the bin's start, without noise."""
        timesteps, noise = np.full(shape[0], self.bins[b]), np.zeros(shape, np.float32)
        for row, generator in enumerate(generators):
            timesteps[row] = generator.integers(self.bins[b], self.bins[b + 1])
            noise[row] = generator.standard_normal(shape[1:], np.float32)
        return timesteps, noise

    @cached_property
    def _batches(self) -> list[_ImageBatch]:
        """Make this rank's share of the batches, once: the autoencoder does not learn, so the latents stay the same."""
        size, world_size = self.settings.batch_size, self.collective.world_size
        starts = range(size * self.collective.rank, len(self.held_out), size * world_size)
        return [self._batch(range(start, min(start + size, len(self.held_out)))) for start in starts]

    def _batch(self, sample_ids: range) -> _ImageBatch:
        fill = [sample_ids[0]] * (self.settings.batch_size - len(sample_ids))
        samples = [self.held_out.sample(number) for number in (*sample_ids, *fill)]
        generators = [sample_generator(self.settings.seed, "posterior", 0, sample.sample_id) for sample in samples]
        return _ImageBatch(*self.inputs.of_samples(samples, generators), list(sample_ids))
