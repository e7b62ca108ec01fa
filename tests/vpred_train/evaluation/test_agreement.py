"""CLIP scores and retrieval against loops, and paired differences."""

import math

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from vpred_train.evaluation.agreement import agreement, mean_of, paired_difference, relative_score

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(7, 5))
PROMPTS = ["a fox", "a kite", "a fox", "tea", "snow", "tea", "tea"]
TEXT_OF = {prompt: RNG.normal(size=5) for prompt in sorted(set(PROMPTS))}
TEXTS = np.array([TEXT_OF[prompt] for prompt in PROMPTS])


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def test_scores_equal_loops() -> None:
    found = agreement(IMAGES, TEXTS, PROMPTS)
    own = [100 * cosine(i, t) for i, t in zip(IMAGES, TEXTS, strict=True)]
    np.testing.assert_allclose(found.of_images, own, rtol=1e-12)
    means = [np.mean([v for v, p in zip(own, PROMPTS, strict=True) if p == prompt]) for prompt in TEXT_OF]
    assert found.score.value == pytest.approx(np.mean(means))
    assert found.score.standard_error == pytest.approx(np.std(means, ddof=1) / 2)
    assert found.score.n == 4
    others = [100 * cosine(IMAGES[i], TEXTS[j]) for i in range(7) for j in range(7) if PROMPTS[i] != PROMPTS[j]]
    assert found.shuffled == pytest.approx(np.mean(others))


def test_ranks_equal_loops() -> None:
    ranks = [
        1 + sum(cosine(i, t) > cosine(i, TEXT_OF[prompt]) + 1e-12 for t in TEXT_OF.values())
        for i, prompt in zip(IMAGES, PROMPTS, strict=True)
    ]
    found = agreement(IMAGES, TEXTS, PROMPTS)
    assert found.recall_at_1 == pytest.approx(np.mean([rank == 1 for rank in ranks]))
    assert found.median_rank == np.median(ranks)
    assert (found.recall_at_5, found.chance) == (1.0, 0.25)


def test_images_that_equal_their_captions_are_all_found() -> None:
    found = agreement(TEXTS, 3 * TEXTS, PROMPTS)
    assert (found.recall_at_1, found.median_rank) == (1, 1)
    assert found.score.value == pytest.approx(100)
    assert agreement(-TEXTS, TEXTS, PROMPTS).score.value == pytest.approx(-100)  # not clamped


def test_one_text_has_no_shuffled_row() -> None:
    assert math.isnan(agreement(IMAGES[:2], TEXTS[[0, 0]], ["a fox", "a fox"]).shuffled)


def test_paired_differences_lose_what_both_share() -> None:
    common = RNG.normal(size=50) * 10
    noise = RNG.normal(size=50) * 0.1
    found = paired_difference(common + 1 + noise, common)
    assert found.value == pytest.approx(1 + noise.mean())
    assert found.standard_error == pytest.approx(noise.std(ddof=1) / np.sqrt(50))
    assert found.standard_error < mean_of(common).standard_error / 20
    assert math.isnan(mean_of(np.ones(1)).standard_error)


def test_the_relative_score_has_its_ends() -> None:
    assert relative_score(20, 30, 20) == 0
    assert relative_score(30, 30, 20) == 1
    with pytest.raises(ConfigError, match="real images score 20"):
        relative_score(25, 20, 20)


def test_lengths_that_differ_are_refused() -> None:
    with pytest.raises(ConfigError, match="with 6 prompts do not pair up"):
        agreement(IMAGES, TEXTS, PROMPTS[:6])
    with pytest.raises(ConfigError, match="3 and 2 values do not pair up"):
        paired_difference(np.ones(3), np.ones(2))
    with pytest.raises(ConfigError, match="captions: the embedding of row 0"):
        agreement(IMAGES, np.zeros_like(TEXTS), PROMPTS)
