"""The order of samples and the keyed randomness are pure functions."""

import itertools
import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.keyed_random import sample_generator
from data.order.buckets import Buckets, one_bucket
from data.order.order import DRAWN_AHEAD, Order, Part, Pool, part_of
from data.order.permutation import Permutation


def permutation(size: int, seed: int) -> Permutation:
    return Permutation(size, sample_generator(seed, "shuffle", 0, 0))


def order(n: int, seed: int = 7, global_batch: int = 12) -> Order:
    return Order([n], [1], seed, global_batch, one_bucket((8, 8), n))


def bucketed(counts: list[int], seed: int, global_batch: int) -> Order:
    of_sample = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts)).astype(np.uint8)
    sizes = tuple((8 + number, 8) for number in range(len(counts)))
    return Order([sum(counts)], [1], seed, global_batch, Buckets(sizes, len(of_sample), of_sample.__getitem__))


@given(size=st.integers(1, 3000), seed=st.integers(0, 2**63))
def test_a_permutation_is_one(size: int, seed: int) -> None:
    assert sorted(permutation(size, seed)(np.arange(size))) == list(range(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_all_permutations_of_few_come_alike_often(size: int) -> None:
    runs = 40 * math.factorial(size)
    found = Counter(tuple(permutation(size, seed)(np.arange(size))) for seed in range(runs))
    chi2 = sum((found[each] - 40) ** 2 / 40 for each in itertools.permutations(range(size)))
    freedom = math.factorial(size) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)  # one in some ten thousand uniform ones fails


def test_positions_steps_and_cycles_are_those_of_chance() -> None:
    size, runs = 1009, 200
    drawn = np.array([permutation(size, seed)(np.arange(size)) for seed in range(runs)])
    # Where an index comes to lie: 10 x 10 blocks of a table of counts, each a sum of about 2036 chances.
    blocks = np.histogram2d(np.tile(np.arange(size), runs), drawn.ravel(), bins=10)[0]
    expected = np.outer(*2 * [np.histogram(np.arange(size), bins=10)[0]]) * runs / size
    assert ((blocks - expected) ** 2 / expected).sum() < 81 + 4 * math.sqrt(2 * 81)
    # Neighbours do not stay together, and as many indices stay where they are as by chance: one a permutation.
    steps = np.histogram((np.diff(drawn) % size).ravel(), bins=16, range=(0, size))[0]
    assert ((steps - steps.mean()) ** 2 / steps.mean()).sum() < 15 + 4 * math.sqrt(2 * 15)
    assert abs((drawn == np.arange(size)).sum() - runs) < 4 * math.sqrt(runs)
    lag = [np.corrcoef(drawn[0], drawn[run])[0, 1] for run in range(1, runs)]
    assert abs(np.mean(lag)) < 4 / math.sqrt(size * runs)


def test_four_hundred_million_samples_need_no_memory_and_no_replay() -> None:
    tracemalloc.start()
    large = order(400_000_000, global_batch=4096)
    share = large.share(4096 * 10**9, 1024, 1024)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(share.sample_ids)) == 1024
    assert set(share.epochs) == {4096 * 10**9 // 400_000_000}
    assert peak_bytes < 1 << 20


def test_buckets_take_28_bytes_for_1024_samples() -> None:
    """So of 400 million 11 MB, and a few more while they are counted."""
    count = 4_000_000
    tracemalloc.start()
    sizes = [(8 + number, 8) for number in range(7)]
    drawn = Order([count], [1], 0, 4096, Buckets(sizes, count, lambda sample_ids: sample_ids % 1000 % 7))
    share = drawn.share(4096 * 10**6, 1024, 64)
    kept_bytes, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(set(share.sample_ids % 1000 % 7)) == 1
    assert kept_bytes < 28 * count / 1024 + (64 << 10)
    assert peak_bytes < kept_bytes + (5 << 20)


@given(n=st.integers(1, 40), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_each_sample_exactly_once_an_epoch(n: int, seed: int, epoch: int) -> None:
    share = order(n, seed).share(epoch * n, 0, n)
    assert set(share.epochs) == {epoch}
    assert sorted(share.sample_ids) == list(range(n))


@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    batches=st.integers(0, 300),
    world_size=st.sampled_from([1, 2, 3, 4, 6, 12]),
)
def test_global_batch_is_the_same_for_any_number_of_ranks(counts: list[int], batches: int, world_size: int) -> None:
    drawn = bucketed(counts, 7, 12)
    whole = drawn.share(12 * batches, 0, 12)
    share = 12 // world_size
    parts = [drawn.share(12 * batches, rank * share, share) for rank in range(world_size)]
    assert {part.size for part in parts} == {whole.size}
    np.testing.assert_array_equal(whole.sample_ids, np.concatenate([part.sample_ids for part in parts]))
    np.testing.assert_array_equal(whole.epochs, np.concatenate([part.epochs for part in parts]))


@pytest.mark.parametrize("drawn", [order(50), bucketed([30, 20], 7, 12)], ids=["square", "buckets"])
def test_batches_drawn_ahead_are_those_drawn_singly(drawn: Order) -> None:
    """From a position on that is none of a fresh start, further than is drawn at a time."""
    ahead = drawn.shares(36, 4, 6)
    for number in range(3, 3 + 2 * DRAWN_AHEAD):
        found, alone = next(ahead), drawn.share(12 * number, 4, 6)
        assert found.size == alone.size
        np.testing.assert_array_equal(found.sample_ids, alone.sample_ids)
        np.testing.assert_array_equal(found.epochs, alone.epochs)


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return order(100, seed).share(100 * number, 0, 100).sample_ids.tolist()

    assert epoch(0, 0) == epoch(0, 0)
    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


@settings(deadline=None, max_examples=30)
@given(counts=st.lists(st.integers(5, 40), min_size=2, max_size=5), global_batch=st.integers(1, 60))
def test_batches_of_buckets_lose_and_repeat_nothing(counts: list[int], global_batch: int) -> None:
    drawn = bucketed(counts, 3, global_batch)
    batches = [drawn.share(global_batch * number, 0, global_batch) for number in range(80)]
    seen: Counter[tuple[int, int]] = Counter()
    for batch in batches:
        bucket = drawn.buckets.sizes.index(batch.size)
        assert {*drawn.buckets.number_of(batch.sample_ids)} == {bucket}
        seen.update(zip(batch.sample_ids.tolist(), batch.epochs.tolist(), strict=True))
    assert set(seen.values()) == {1}
    # What is behind the clock is behind by less than the batches that an epoch has not filled.
    epochs = len(batches) * global_batch // sum(counts)
    missing = sum(epochs * count for count in counts) - sum(turn < epochs for _, turn in seen)
    assert missing < len(counts) * (global_batch + max(counts) + sum(counts))


def test_buckets_come_mixed_and_in_proportion() -> None:
    drawn = bucketed([600, 200, 200], 0, 10)
    sizes = [drawn.share(10 * number, 0, 10).size for number in range(1000)]
    assert Counter(sizes) == {(8, 8): 600, (9, 8): 200, (10, 8): 200}
    for start in range(0, 1000, 100):  # each epoch
        assert Counter(sizes[start : start + 100]) == {(8, 8): 60, (9, 8): 20, (10, 8): 20}
    runs = len(list(itertools.groupby(sizes)))
    assert 450 < runs < 670  # of 1000 draws 561 are expected


def test_weights_take_samples_more_or_less_often() -> None:
    pool = Pool([part_of(10, 2), part_of(30, 0.5), part_of(7, 1)], 0)
    assert (pool.parts, pool.per_epoch) == ([Part(10, 20), Part(30, 15), Part(7, 7)], 42)
    for epoch in range(4):
        turns, members = pool.at(np.arange(42 * epoch, 42 * (epoch + 1)))
        counts = Counter(members.tolist())
        assert [counts[member] for member in range(10)] == [2] * 10
        assert sum(counts[member] for member in range(10, 40)) == 15
        assert [counts[member] for member in range(40, 47)] == [1] * 7
        assert set(turns[members >= 40]) == {epoch}
        assert set(turns[members < 10]) == {2 * epoch, 2 * epoch + 1}
    turns, members = pool.at(np.arange(84))
    assert sorted(members[(members >= 10) & (members < 40)]) == list(range(10, 40))
    places = np.flatnonzero(members[:42] < 10)
    assert 10 < places.mean() < 31  # mixed, not one source behind the other


@st.composite
def mixtures(draw: st.DrawFn) -> tuple[Order, list[int], list[float]]:
    """Two to four folders of any weights, without and with buckets; the batches are of 12."""
    counts = draw(st.lists(st.integers(4, 40), min_size=2, max_size=4))
    weights = [draw(st.sampled_from([0.01, 0.25, 1 / 3, 0.5, 1, 1.7, 2, 3])) for _ in counts]
    number = draw(st.integers(1, 3))
    of_sample = np.arange(sum(counts), dtype=np.uint8) % number
    sizes = tuple((8 + bucket, 8) for bucket in range(number))
    return (
        Order(counts, weights, draw(st.integers(0, 99)), 12, Buckets(sizes, len(of_sample), of_sample.__getitem__)),
        counts,
        weights,
    )


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), epochs=st.integers(1, 12))
def test_a_mixture_keeps_its_proportions(mixture: tuple[Order, list[int], list[float]], epochs: int) -> None:
    drawn, counts, weights = mixture
    seen: list[list[int]] = [[] for _ in range(sum(counts))]  # of each sample its turns, as they come
    for bucket, pool in enumerate(drawn.pools):
        turns, chosen = pool.at(np.arange(epochs * pool.per_epoch))
        for turn, sample_id in zip(turns.tolist(), drawn.buckets.members(bucket, chosen).tolist(), strict=True):
            seen[sample_id].append(turn)
    buckets = drawn.buckets.number_of(np.arange(sum(counts)))
    for end, count, weight in zip(np.cumsum(counts).tolist(), counts, weights, strict=True):
        own = range(end - count, end)
        for bucket in drawn.buckets.numbers:
            times = [len(seen[sample_id]) for sample_id in own if buckets[sample_id] == bucket]
            # The rule, written down once more: so many in each epoch, and no sample twice before all others came once.
            assert sum(times) == epochs * (max(1, round(weight * len(times))) if times else 0)
            assert not times or max(times) - min(times) <= 1
    assert all(sorted(turns) == list(range(len(turns))) for turns in seen)  # each turn once, none left out


@settings(deadline=None, max_examples=40)
@given(mixture=mixtures(), batches=st.integers(0, 200), world_size=st.sampled_from([2, 3, 4, 6, 12]))
def test_a_mixtures_batches_depend_on_the_clock_alone(
    mixture: tuple[Order, list[int], list[float]], batches: int, world_size: int
) -> None:
    drawn, counts, weights = mixture
    whole = drawn.share(12 * batches, 0, 12)
    again = Order(counts, weights, drawn.seed, 12, drawn.buckets)  # as a resume begins: nothing has been drawn before
    share = 12 // world_size
    parts = [again.share(12 * batches, rank * share, share) for rank in range(world_size)]
    assert {part.size for part in parts} == {whole.size}
    np.testing.assert_array_equal(whole.sample_ids, np.concatenate([part.sample_ids for part in parts]))
    np.testing.assert_array_equal(whole.epochs, np.concatenate([part.epochs for part in parts]))


def test_a_batch_start_off_the_grid_is_refused_with_buckets() -> None:
    with pytest.raises(ValueError, match="5 samples seen are no multiple of the global batch 4"):
        bucketed([4, 4], 0, 4).share(5, 0, 4)


def test_draws_do_not_depend_on_the_order_of_calls() -> None:
    keys = [
        (seed, stream, epoch, i)
        for seed in (0, 5)
        for stream in ("augment", "diffusion")
        for epoch in (0, 1)
        for i in (0, 9)
    ]
    forward = {key: sample_generator(*key).random(4).tolist() for key in keys}
    backward = {key: sample_generator(*key).random(4).tolist() for key in reversed(keys)}
    assert forward == backward
    assert len({tuple(values) for values in forward.values()}) == len(keys)


def test_draws_equal_numpys_philox_with_the_same_key_and_counter() -> None:
    reference = np.random.Generator(np.random.Philox(key=[3, 3], counter=[0, 0, 11, 2]))
    np.testing.assert_array_equal(
        sample_generator(3, "diffusion", 2, 11).standard_normal(8), reference.standard_normal(8)
    )
