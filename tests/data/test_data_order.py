"""The order and the keyed randomness are pure functions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data.keyed_random import sample_generator
from data.order import Order


@given(n=st.integers(1, 40), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
def test_each_sample_exactly_once_an_epoch(n: int, seed: int, epoch: int) -> None:
    epochs, ids = Order(n, seed).slice(epoch * n, n)
    assert set(epochs) == {epoch}
    assert sorted(ids) == list(range(n))


@given(n=st.integers(1, 40), start=st.integers(0, 300), world_size=st.sampled_from([1, 2, 3, 4, 6]))
def test_global_batch_is_the_same_for_any_number_of_ranks(n: int, start: int, world_size: int) -> None:
    whole = Order(n, 7).slice(start, 12)
    share = 12 // world_size
    parts = [Order(n, 7).slice(start + rank * share, share) for rank in range(world_size)]
    for of_whole, of_parts in zip(whole, zip(*parts, strict=True), strict=True):
        np.testing.assert_array_equal(of_whole, np.concatenate(of_parts))


def test_epochs_and_seeds_are_shuffled_differently() -> None:
    def epoch(seed: int, number: int) -> list[int]:
        return Order(100, seed).slice(100 * number, 100)[1].tolist()

    assert epoch(0, 0) == epoch(0, 0)
    assert len({tuple(epoch(seed, number)) for seed in (0, 1) for number in (0, 1)}) == 4


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
