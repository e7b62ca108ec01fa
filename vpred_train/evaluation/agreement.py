"""Computes how well images agree with their captions, from normalised CLIP embeddings (Hessel et al. 2021)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.contract.config import ConfigError
from vpred_train.evaluation.arrays import Features, Float64, checked_features, normalised

SCALE = 100.0


@dataclass(frozen=True)
class Mean:
    """A mean and its standard error over n independent values. The error of one value is nan."""

    value: float
    standard_error: float
    n: int


def mean_of(values: Float64) -> Mean:
    """Return the mean of values (n,), n >= 1."""
    n = len(values)
    error = float(values.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    return Mean(float(values.mean()), error, n)


@dataclass(frozen=True)
class Agreement:
    """Cosines of images with captions.

    of_images: (n,) SCALE * cosine of each image with its own caption, not clamped.
    score: their mean; the images of one prompt count as one value.
    shuffled: mean over the pairs of images with the captions of other texts, or nan where all texts are equal.
    recall_at_1, recall_at_5: share of images whose caption is among the best 1 or 5 texts.
    chance: recall_at_1 of a guess.
    median_rank: of an image's own caption, from 1.
    """

    of_images: Float64
    score: Mean
    shuffled: float
    recall_at_1: float
    recall_at_5: float
    median_rank: float
    chance: float


def agreement(images: Features, texts: Features, prompts: Sequence[str]) -> Agreement:
    """Return the agreement of images (n, d) with their captions (n, d), of the texts `prompts` (n).

    Equal texts count as one caption. A caption's rank counts those texts that score higher.
    Raises ConfigError: when the three do not fit.
    """
    x, y = checked_features(images, "images", 1), checked_features(texts, "captions", 1)
    if x.shape != y.shape or len(prompts) != len(x):
        raise ConfigError(f"embeddings of shapes {x.shape} and {y.shape} with {len(prompts)} prompts do not pair up")
    _, first, own = np.unique(np.asarray(prompts, dtype=object), return_index=True, return_inverse=True)
    cosines = normalised(x, "images") @ normalised(y[first], "captions").T  # (n, texts)
    mine = cosines[np.arange(len(x)), own]
    ranks = 1 + (cosines > mine[:, None]).sum(axis=1)
    weights = np.bincount(own)[None, :] * (np.arange(len(first)) != own[:, None])  # captions of other texts
    total = weights.sum()
    return Agreement(
        SCALE * mine,
        mean_of(SCALE * _per_group(mine, own)),
        float(SCALE * (cosines * weights).sum() / total) if total else float("nan"),
        float((ranks <= 1).mean()),
        float((ranks <= 5).mean()),
        float(np.median(ranks)),
        1 / len(first),
    )


def relative_score(generated: float, real: float, shuffled: float) -> float:
    """Return 0 for a score as of shuffled captions and 1 for that of real images. It compares between CLIP models."""
    if real <= shuffled:
        raise ConfigError(f"real images score {real:g} and shuffled captions {shuffled:g}; no scale lies between them")
    return (generated - shuffled) / (real - shuffled)


def paired_difference(a: Features, b: Features) -> Mean:
    """Return the mean of a - b with its standard error, for values (n,) of the same prompts and seeds.

    Raises ConfigError: when the two have different lengths.
    """
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape or x.ndim != 1 or not len(x):
        raise ConfigError(f"{x.size} and {y.size} values do not pair up; both need the same prompts and seeds")
    return mean_of(x - y)


def _per_group(values: Float64, group: NDArray[np.intp]) -> Float64:
    return np.bincount(group, values) / np.bincount(group)
