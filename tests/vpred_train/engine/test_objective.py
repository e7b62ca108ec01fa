"""What is drawn for a sample: its distribution, and that it is the same on any number of ranks."""

import math
from typing import Any

import numpy as np
import pytest

from data import Batch
from vpred_train.config.objective import ObjectiveConfig
from vpred_train.config.train import TrainConfig
from vpred_train.diffusion.timesteps import timestep_cdf, timesteps_at
from vpred_train.engine.objective import Draws, Objective

ALL_ON = {
    "offset_noise": 0.3,
    "input_perturbation": 0.2,
    "timestep_distribution": "logit_normal",
    "stratified_timesteps": True,
}


def objective_of(config: TrainConfig, global_batch: int, **keys: Any) -> Objective:
    tree = config.model_dump(mode="json") | {"objective": keys, "global_batch": global_batch}
    return Objective(TrainConfig.model_validate(tree | {"total_samples": 10 * global_batch}))


def batch_of(size: int, start: int = 0, stop: int | None = None, epoch: int = 0) -> Batch:
    """Samples [start, stop) of a global batch of `size`."""
    places = np.arange(start, size if stop is None else stop)
    return Batch(
        arrays={"images": np.zeros((len(places), 3, 8, 8), np.float32)},
        captions=("",) * len(places),
        epochs=np.full(len(places), epoch),
        sample_ids=places + 5,
        places=places,
        samples_seen=(epoch + 1) * size,
        wait_s=0.0,
    )


def kolmogorov_smirnov(values: np.ndarray, cdf: np.ndarray) -> float:
    """sqrt(n) times the largest distance of both distributions; above 1.95 once in a thousand times."""
    ordered = np.sort(cdf)
    steps = np.arange(len(values) + 1) / len(values)
    return float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()) * math.sqrt(len(values)))


@pytest.mark.parametrize("keys", [{}, ALL_ON])
@pytest.mark.parametrize("ranks", [2, 4])
def test_draws_are_the_same_on_any_number_of_ranks(train_config: TrainConfig, keys: dict[str, Any], ranks: int) -> None:
    objective = objective_of(train_config, 8, **keys)
    whole = objective.draw(batch_of(8), (12, 4, 4))
    share = 8 // ranks
    parts = [objective.draw(batch_of(8, rank * share, (rank + 1) * share), (12, 4, 4)) for rank in range(ranks)]
    for name in ("timesteps", "noise", "input_noise"):
        np.testing.assert_array_equal(np.concatenate([getattr(part, name) for part in parts]), getattr(whole, name))
    assert len({*whole.timesteps.tolist()}) > 1
    later = objective.draw(batch_of(8, epoch=1), (12, 4, 4))
    assert (later.timesteps != whole.timesteps).any()
    assert (later.noise != whole.noise).all()


def test_draws_of_plain_runs_stay_what_they_were(train_config: TrainConfig) -> None:
    """One Philox generator for each sample, first the timestep, then the noise."""
    draws = objective_of(train_config, 3).draw(batch_of(3, epoch=2), (2, 3, 3))
    for row, sample_id in enumerate((5, 6, 7)):
        philox = np.random.Philox(key=np.array([0, 3], np.uint64), counter=np.array([0, 0, sample_id, 2], np.uint64))
        generator = np.random.Generator(philox)
        assert draws.timesteps[row] == generator.integers(1000)
        np.testing.assert_array_equal(draws.noise[row], generator.standard_normal((2, 3, 3), np.float32))
    np.testing.assert_array_equal(draws.input_noise, draws.noise)


def test_one_feature_changes_no_draw_of_another(train_config: TrainConfig) -> None:
    def drawn(**keys: Any) -> Draws:
        return objective_of(train_config, 6, **keys).draw(batch_of(6), (3, 4, 4))

    plain, every = drawn(), drawn(**ALL_ON)
    offset = drawn(offset_noise=0.3).noise
    np.testing.assert_array_equal(drawn(input_perturbation=0.2).noise, plain.noise)
    np.testing.assert_array_equal(every.noise, offset)
    np.testing.assert_allclose(
        every.input_noise - every.noise, drawn(input_perturbation=0.2).input_noise - plain.noise, atol=1e-6
    )
    np.testing.assert_array_equal(drawn(stratified_timesteps=True).noise, plain.noise)
    assert (drawn(stratified_timesteps=True).timesteps != plain.timesteps).any()


def test_plain_draws_have_their_distribution(train_config: TrainConfig) -> None:
    draws = objective_of(train_config, 4000).draw(batch_of(4000), (1, 1, 1))
    np.testing.assert_allclose(np.bincount(draws.timesteps // 100, minlength=10) / 4000, 0.1, atol=0.02)
    assert abs(draws.noise.mean()) < 0.06
    assert draws.noise.std() == pytest.approx(1, abs=0.05)


def test_offset_noise_is_shared_by_a_channel_alone(train_config: TrainConfig) -> None:
    """The covariance of two elements of a sample is 1 + s^2 for the same, s^2 within a channel and 0 between two."""
    draws = objective_of(train_config, 20000, offset_noise=0.5).draw(batch_of(20000), (2, 1, 2))
    covariance = np.cov(draws.noise.reshape(20000, 4).astype(np.float64), rowvar=False)
    expected = np.eye(4) + 0.25 * np.kron(np.eye(2), np.ones((2, 2)))
    np.testing.assert_allclose(covariance, expected, atol=0.05)  # 5 standard errors of (1.25 sqrt(2 / n))
    np.testing.assert_array_equal(draws.input_noise, draws.noise)


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-0.5, 0.6)])
@pytest.mark.parametrize("stratified", [False, True])
def test_logit_normal_timesteps(train_config: TrainConfig, mean: float, std: float, stratified: bool) -> None:
    keys = {"timestep_distribution": "logit_normal", "logit_mean": mean, "logit_std": std}
    drawn = objective_of(train_config, 5000, **keys, stratified_timesteps=stratified).draw(batch_of(5000), (1, 1, 1))
    # A uniform number within each timestep makes the distribution continuous.
    times = (drawn.timesteps + np.random.default_rng(0).random(5000)) / 1000
    logits = np.log(times / (1 - times))
    cdf = np.array([0.5 * (1 + math.erf((logit - mean) / (std * math.sqrt(2)))) for logit in logits])
    statistic = kolmogorov_smirnov(times, cdf)
    assert statistic < (0.2 if stratified else 1.95)


@pytest.mark.parametrize("timesteps", [1, 2, 1000])
def test_the_table_of_timesteps_is_safe_at_both_ends(timesteps: int) -> None:
    for distribution in ("uniform", "logit_normal"):
        cdf = timestep_cdf(ObjectiveConfig.model_validate({"timestep_distribution": distribution}), timesteps)
        assert (cdf[0], cdf[-1], len(cdf)) == (0, 1, timesteps + 1)
        assert (np.diff(cdf) > 0).all()
        np.testing.assert_array_equal(timesteps_at(np.array([0.0, 1.0]), cdf), [0, timesteps - 1])
        np.testing.assert_array_equal(timesteps_at(cdf[:-1], cdf), np.arange(timesteps))
    uniform = np.random.default_rng(0).random(1000)
    cdf = timestep_cdf(ObjectiveConfig(), timesteps)
    np.testing.assert_array_equal(timesteps_at(uniform, cdf), np.floor(uniform * timesteps))


def test_each_stratum_of_the_global_batch_is_hit_once(train_config: TrainConfig) -> None:
    objective = objective_of(train_config, 20, stratified_timesteps=True)
    orders = []
    for epoch in range(3):
        timesteps = objective.draw(batch_of(20, epoch=epoch), (1, 1, 1)).timesteps
        assert sorted((timesteps // 50).tolist()) == list(range(20))
        orders.append(tuple(timesteps // 50))
        assert len({*(timesteps % 50).tolist()}) > 5
    assert len({*orders, tuple(range(20))}) == 4


def test_input_perturbation_leaves_the_target_clean(train_config: TrainConfig) -> None:
    batch = batch_of(200)
    rng = np.random.default_rng(0)
    z_0, tokens = rng.standard_normal((200, 3, 4, 4), np.float32), np.zeros((200, 8), np.int32)
    plain, perturbed = (objective_of(train_config, 200, input_perturbation=strength) for strength in (0.0, 0.1))
    draws = perturbed.draw(batch, (3, 4, 4))
    clean_z, clean_target, *_ = plain.network_inputs(z_0, plain.draw(batch, (3, 4, 4)), tokens)
    z_t, target, *_ = perturbed.network_inputs(z_0, draws, tokens)
    np.testing.assert_array_equal(target.asnumpy(), clean_target.asnumpy())
    added = (draws.input_noise - draws.noise) / 0.1
    assert added.std() == pytest.approx(1, abs=0.03)
    assert abs(np.corrcoef(added.ravel(), draws.noise.ravel())[0, 1]) < 0.04
    sigma = perturbed.schedule.sigma[draws.timesteps].reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(z_t.asnumpy() - clean_z.asnumpy(), 0.1 * sigma * added, atol=2e-6)


def test_weights_follow_their_timesteps(train_config: TrainConfig) -> None:
    objective = objective_of(train_config, 6, weight="min_snr")
    draws = objective.draw(batch_of(6), (3, 4, 4))
    inputs = objective.network_inputs(np.zeros((6, 3, 4, 4), np.float32), draws, np.zeros((6, 8), np.int32))
    alpha, sigma = (
        table[draws.timesteps].astype(np.float64) for table in (objective.schedule.alpha, objective.schedule.sigma)
    )
    expected = np.minimum(alpha**2 / sigma**2, 5) / (1 + alpha**2 / sigma**2)
    assert objective.weights.dtype == np.float32
    np.testing.assert_allclose(inputs[2].asnumpy(), expected, rtol=1e-6)
    np.testing.assert_array_equal(inputs[3].asnumpy(), draws.timesteps)
