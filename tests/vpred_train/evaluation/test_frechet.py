"""Frechet distances against closed forms, and the jackknife against brute force."""

import numpy as np
import pytest

from launcher.contract.config import ConfigError
from vpred_train.evaluation import frechet
from vpred_train.evaluation.frechet import (
    Moments,
    MomentSums,
    floor_of_halves,
    frechet_distance,
    frechet_distance_of_moments,
    frechet_replicates,
    frechet_standard_error,
    moments,
)


def draw(n: int, d: int, seed: int, scale: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) * np.linspace(0.2, 2, d) * scale + rng.normal(size=d)


def by_definition(x: np.ndarray, y: np.ndarray) -> float:
    """Tr (S1 S2)^(1/2) by the eigenvalues of S1 S2, as the definition says."""
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = np.sqrt(np.maximum(np.linalg.eigvals(s1 @ s2).real, 0)).sum()
    gap = x.mean(0) - y.mean(0)
    return float(gap @ gap + np.trace(s1) + np.trace(s2) - 2 * root)


def test_diagonal_covariances_have_the_closed_form() -> None:
    a, b = np.array([0.0, 1, 4, 9]), np.array([4.0, 1, 0, 2])
    m1, m2 = np.array([1.0, 0, 2, -1]), np.array([0.0, 0, 1, 3])
    found = frechet_distance_of_moments(Moments(m1, np.diag(a)), Moments(m2, np.diag(b)))
    assert found == pytest.approx(((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-12)


def test_commuting_covariances_have_the_closed_form() -> None:
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 6)))
    a, b = np.arange(1.0, 7), np.array([3.0, 1, 4, 1, 5, 9])
    found = frechet_distance_of_moments(
        Moments(np.zeros(6), q @ np.diag(a) @ q.T), Moments(np.zeros(6), q @ np.diag(b) @ q.T)
    )
    assert found == pytest.approx(((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), abs=1e-11)


def test_covariances_of_rank_one_have_the_closed_form() -> None:
    u, v = np.array([3.0, 0, 4]), np.array([1.0, 2, 2])
    x, y = np.outer([1, -1], u), np.outer([1, -1], v)  # covariances 2 u u^T and 2 v v^T
    expected = 2 * (u @ u) + 2 * (v @ v) - 2 * 2 * abs(u @ v)
    assert frechet_distance(x, y) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [2, 7, 16, 17, 200])
def test_a_set_has_no_distance_to_itself(n: int) -> None:
    x = draw(n, 16, 1)
    assert abs(frechet_distance(x, x)) < 1e-9
    assert abs(frechet_distance_of_moments(moments(x), moments(x))) < 1e-9


@pytest.mark.parametrize(("n", "m"), [(5, 9), (16, 16), (16, 40), (40, 5), (60, 80)])
def test_symmetry_and_shift(n: int, m: int) -> None:
    x, y = draw(n, 16, 2), draw(m, 16, 3, 1.3)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-12)
    delta = np.linspace(-1, 1, 16)
    y = y - y.mean(0) + x.mean(0)
    assert frechet_distance(x + delta, y) - frechet_distance(x, y) == pytest.approx(delta @ delta, abs=1e-10)


@pytest.mark.parametrize("n", [40, 41, 100])
def test_the_definition_holds_where_both_have_full_rank(n: int) -> None:
    x, y = draw(n, 12, 4), draw(60, 12, 5, 1.5)
    assert frechet_distance(x, y) == pytest.approx(by_definition(x, y), rel=1e-9)


@pytest.mark.parametrize("n", [10, 12, 13])
def test_the_paths_below_at_and_above_the_width_agree(n: int) -> None:
    """Columns of zeros change no distance, but make d exceed n."""
    x, y = draw(n, 12, 6), draw(n + 1, 12, 7)
    wide = [np.pad(each, ((0, 0), (0, 20))) for each in (x, y)]
    assert frechet_distance(*wide) == pytest.approx(frechet_distance(x, y), rel=1e-10)
    assert frechet_distance_of_moments(moments(x), moments(y)) == pytest.approx(frechet_distance(x, y), rel=1e-6)


def test_sums_equal_numpy_and_do_not_depend_on_batches() -> None:
    x = draw(2 * frechet.BLOCK + 77, 5, 8).astype(np.float32) + np.float32(1000)
    found = []
    for step in (len(x), 1000, 4096, 37):
        sums = MomentSums(5)
        for start in range(0, len(x), step):
            sums.add(x[start : start + step])
        found.append(sums.moments())
    for each in found[1:]:
        assert each.mean.tobytes() == found[0].mean.tobytes()
        assert each.covariance.tobytes() == found[0].covariance.tobytes()
    assert found[0].n == len(x)
    np.testing.assert_allclose(found[0].covariance, np.cov(x.astype(float), rowvar=False), rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(found[0].mean, x.astype(float).mean(0), rtol=1e-14)


@pytest.mark.parametrize(("n", "m", "d"), [(7, 9, 20), (30, 6, 4), (12, 12, 12)])
def test_replicates_equal_those_of_brute_force(n: int, m: int, d: int) -> None:
    x, y = draw(n, d, 9), draw(m, d, 10)
    brute = [frechet_distance(np.delete(x, i, 0), y) for i in range(n)]
    np.testing.assert_allclose(frechet_replicates(x, y), brute, rtol=1e-6)
    other = [frechet_distance(x, np.delete(y, i, 0)) for i in range(m)]
    variance = sum((len(t) - 1) * np.var(t) for t in (brute, other))
    assert frechet_standard_error(x, y) == pytest.approx(np.sqrt(variance), rel=1e-5)


def test_replicates_of_groups_equal_those_of_brute_force() -> None:
    x, y = draw(frechet.LEAVE_ONE_OUT + 3, 4, 11), draw(20, 4, 12)
    brute = [frechet_distance(np.delete(x, range(g, len(x), 50), 0), y) for g in range(50)]
    np.testing.assert_allclose(frechet_replicates(x, y), brute, rtol=1e-9)


def test_the_standard_error_is_that_over_draws() -> None:
    pairs = [(draw_same(40, seed), draw_same(50, seed + 500, 1.5)) for seed in range(60)]
    over_draws = np.std([frechet_distance(*pair) for pair in pairs], ddof=1)
    estimated = np.mean([frechet_standard_error(*pair) for pair in pairs[:20]])
    assert 0.75 < estimated / over_draws < 1.5


def draw_same(n: int, seed: int, scale: float = 1.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, 6)) * scale


def test_the_floor_falls_as_one_over_n() -> None:
    floors = [floor_of_halves(draw_same(n, 3), seed=0) for n in (400, 4000, 40000)]
    assert 5 < floors[0] / floors[1] < 20
    assert 5 < floors[1] / floors[2] < 20
    assert floor_of_halves(draw_same(400, 3), 0) == floors[0] != floor_of_halves(draw_same(400, 3), 1)


@pytest.mark.parametrize(
    ("mean", "covariance", "message"),
    [
        (np.zeros(3), np.eye(2), r"\(3,\) and sigma of \(2, 2\)"),
        (np.zeros(2), np.array([[1.0, 0.5], [0.4, 1]]), "not symmetric: two mirrored entries differ by 0.1"),
        (np.array([0, np.nan]), np.eye(2), "not finite"),
        (np.zeros((2, 1)), np.eye(2), "needed"),
    ],
)
def test_statistics_that_do_not_fit_are_refused(mean: np.ndarray, covariance: np.ndarray, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Moments(mean, covariance)


def test_a_negative_eigenvalue_and_two_widths_are_refused() -> None:
    good = Moments(np.zeros(2), np.eye(2))
    with pytest.raises(ConfigError, match="eigenvalue -1"):
        frechet_distance_of_moments(good, Moments(np.zeros(2), np.diag([1.0, -1])))
    with pytest.raises(ConfigError, match="widths 2 and 3"):
        frechet_distance_of_moments(good, Moments(np.zeros(3), np.eye(3)))
    with pytest.raises(ConfigError, match="widths 2 and 3"):
        frechet_distance(np.eye(2), np.eye(3))


def test_features_that_do_not_fit_are_refused() -> None:
    x = draw(5, 3, 0)
    with pytest.raises(ConfigError, match=r"real: 1 image\(s\); at least 2"):
        frechet_distance(x, x[:1])
    bad = x.copy()
    bad[3, 1] = np.inf
    with pytest.raises(ConfigError, match="generated: the features of image 3"):
        frechet_distance(bad, x)
    with pytest.raises(ConfigError, match="a matrix"):
        moments(x[0])
    with pytest.raises(ConfigError, match=r"0 image\(s\)"):
        MomentSums(3).moments()
