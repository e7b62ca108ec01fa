"""KID and CMMD against double loops, the analytic discrepancy of two Gaussians, and the spread over draws."""

import itertools

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from vpred_train.evaluation import kernels
from vpred_train.evaluation.kernels import cmmd, cubic_kernel, kernel_sums, kid


def draw(n: int, seed: int, d: int = 4, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)) + shift


def kid_by_loops(x: np.ndarray, y: np.ndarray) -> float:
    def k(a: np.ndarray, b: np.ndarray) -> float:
        return float((a @ b / len(a) + 1) ** 3)

    within = [np.mean([k(z[i], z[j]) for i, j in itertools.permutations(range(len(z)), 2)]) for z in (x, y)]
    return float(sum(within) - 2 * np.mean([k(a, b) for a in x for b in y]))


def analytic_kid(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    """Squared discrepancy of the cubic kernel between N(m1, diag s1) and N(m2, diag s2), d = len(m1).

    E (x^T y / d + 1)^3 over independent x, y, from the moments of u = x^T y, by conditioning on x.
    """

    def expected(m: np.ndarray, s: np.ndarray, p: np.ndarray, q: np.ndarray) -> float:
        d = len(m)
        first = m @ p
        mean2 = first**2 + s @ p**2 + q @ m**2 + s @ q  # E u^2
        # u given x is N(x.p, sum q x^2), so that E u^3 = E (x.p)^3 + 3 E (x.p) (q.x^2)
        cubed = first**3 + 3 * first * (s @ p**2)
        mixed = first * (q @ m**2 + q @ s) + 2 * (p * m * s * q).sum()
        return float((cubed + 3 * mixed) / d**3 + 3 * mean2 / d**2 + 3 * first / d + 1)

    return expected(m1, s1, m1, s1) + expected(m2, s2, m2, s2) - 2 * expected(m1, s1, m2, s2)


@pytest.mark.parametrize(("n", "m"), [(3, 3), (5, 11), (12, 4)])
def test_kid_and_its_error_equal_double_loops(n: int, m: int) -> None:
    x, y = draw(n, 1), draw(m, 2, shift=0.5)
    value, error = kid(x, y)
    assert value == pytest.approx(kid_by_loops(x, y), rel=1e-10)
    without_x = [kid(np.delete(x, i, 0), y)[0] for i in range(n)] if n > 3 else []
    without_y = [kid(x, np.delete(y, j, 0))[0] for j in range(m)] if m > 3 else []
    if without_x and without_y:
        found = kernel_sums(x, y, cubic_kernel).replicates
        np.testing.assert_allclose(found[0], without_x, rtol=1e-9)
        np.testing.assert_allclose(found[1], without_y, rtol=1e-9)
        expected = (n - 1) * np.var(without_x) + (m - 1) * np.var(without_y)
        assert error == pytest.approx(np.sqrt(expected), rel=1e-9)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draw(23, 1), draw(17, 2)
    whole = kernel_sums(x, y, cubic_kernel)
    monkeypatch.setattr(kernels, "BLOCK", 5)
    parts = kernel_sums(x, y, cubic_kernel)
    for name in ("xx", "yy", "xy", "yx", "diagonal_x", "diagonal_y", "unbiased", "biased"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-12)


def test_the_mean_of_kid_is_the_analytic_discrepancy() -> None:
    m1, s1 = np.array([0.0, 0.5, 1, -1]), np.array([1.0, 0.5, 2, 1])
    m2, s2 = np.array([0.2, 0.0, 1, -0.5]), np.array([1.0, 1.5, 1, 0.5])
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        x = m1 + np.sqrt(s1) * rng.normal(size=(30, 4))
        y = m2 + np.sqrt(s2) * rng.normal(size=(20, 4))
        found.append(kid(x, y)[0])
    truth = analytic_kid(m1, s1, m2, s2)
    error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - truth) < 3 * error
    assert truth > 20 * error  # a truth of zero would be too easy
    biased = kernel_sums(x, y, cubic_kernel)
    assert biased.biased - biased.unbiased > 3 * error  # the test would notice the diagonals


def test_the_jackknife_interval_holds_the_truth() -> None:
    zeros, ones = np.zeros(4), np.ones(4)
    truth = analytic_kid(zeros, ones, zeros + 0.7, ones)
    held = 0
    for seed in range(200):
        value, error = kid(draw(40, seed), draw(50, seed + 1000, shift=0.7))
        held += abs(value - truth) <= 1.96 * error
    assert held >= 180


def test_cmmd_equals_its_formula() -> None:
    x, y = draw(6, 1, d=8), draw(9, 2, d=8, shift=0.5)
    a, b = (z / np.sqrt((z**2).sum(1, keepdims=True)) for z in (x, y))

    def k(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.exp(-((p - q) ** 2).sum() / 200))

    def mean(p: np.ndarray, q: np.ndarray) -> float:
        return float(np.mean([k(u, v) for u in p for v in q]))

    published, unbiased, error = cmmd(x, y)
    assert published == pytest.approx(1000 * (mean(a, a) + mean(b, b) - 2 * mean(a, b)), abs=1e-9)
    off = [np.mean([k(z[i], z[j]) for i, j in itertools.permutations(range(len(z)), 2)]) for z in (a, b)]
    assert unbiased == pytest.approx(1000 * (sum(off) - 2 * mean(a, b)), abs=1e-9)
    assert published > unbiased
    assert error > 0
    np.testing.assert_allclose(cmmd(3 * x, y), (published, unbiased, error), rtol=1e-9)  # norms do not matter


def test_sets_that_are_too_small_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"real: 2 image\(s\); at least 3"):
        kid(draw(5, 1), draw(2, 2))


def test_an_embedding_without_direction_is_refused() -> None:
    x = draw(5, 1)
    x[2] = 0
    with pytest.raises(ConfigError, match="generated: the embedding of row 2"):
        cmmd(x, draw(5, 2))
