"""Computes the learning rate, a pure function of the samples seen."""

import math

from vpred_train.config.train import TrainConfig


def learning_rate(config: TrainConfig, samples_seen: int) -> float:
    """Return the rate of the step that ends at `samples_seen` (0 to total_samples): warm-up from 0, then the schedule.

    Both rates of the recipe are multiplied by global_batch / reference_batch when `reference_batch` is given.
    """
    optimizer, schedule = config.optimizer, config.schedule
    scale = config.global_batch / (optimizer.reference_batch or config.global_batch)
    peak, final = scale * optimizer.learning_rate, scale * schedule.final_learning_rate
    warmup = schedule.warmup(config.global_batch)
    if samples_seen < warmup:
        return peak * samples_seen / warmup
    if schedule.name == "multi_step":
        passed = sum(milestone < samples_seen for milestone in schedule.milestones(config.global_batch))
        return peak * schedule.factor**passed
    shape = SHAPES[schedule.name]
    progress = (samples_seen - warmup) / (config.total_samples - warmup)
    return final + (peak - final) * shape(progress, schedule.power)


def constant(_progress: float, _power: float) -> float:
    """Return 1."""
    return 1.0


def cosine(progress: float, _power: float) -> float:
    """Return half a cosine, from 1 to 0 (Loshchilov & Hutter 2017, arXiv 1608.03983, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def polynomial(progress: float, power: float) -> float:
    """Return (1 - progress)^power."""
    return (1 - progress) ** power


SHAPES = {"constant": constant, "cosine": cosine, "polynomial": polynomial}
