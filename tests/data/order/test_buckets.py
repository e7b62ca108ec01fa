"""Which sizes there are, and which image goes to which."""

import numpy as np
import pytest

from data.config import BucketsConfig
from data.order.buckets import BLOCK, Buckets, bucket_sizes, make_buckets


@pytest.mark.parametrize(
    ("resolution", "multiple_px", "max_aspect"), [(512, 64, 2), (768, 64, 2), (768, 64, 3), (32, 8, 4)]
)
def test_sizes_have_one_area_and_come_in_pairs(resolution: int, multiple_px: int, max_aspect: float) -> None:
    sizes = bucket_sizes(resolution, multiple_px, max_aspect)
    assert (resolution, resolution) in sizes
    assert {(width, height) for height, width in sizes} == set(sizes)
    for height, width in sizes:
        assert height % multiple_px == width % multiple_px == 0
        assert 1 / max_aspect <= width / height <= max_aspect
        assert abs(height * width - resolution**2) <= min(height, width) * multiple_px / 2


def test_the_sizes_at_768() -> None:
    landscape = [(768, 768), (704, 832), (640, 896), (576, 1024)]
    portrait = [(width, height) for height, width in reversed(landscape[1:])]
    assert list(bucket_sizes(768, 64, 2.0)) == [*portrait, *landscape]


def images(*groups: tuple[int, int, int]) -> np.ndarray:
    """(count, width, height) of each group."""
    return np.concatenate([np.full((count, 2), (width, height), np.int32) for count, width, height in groups])


def made(config: BucketsConfig, resolution: int, sizes: np.ndarray, global_batch: int) -> Buckets:
    return make_buckets(config, resolution, len(sizes), sizes.__getitem__, global_batch)


def test_images_go_to_the_nearest_aspect() -> None:
    sizes = images((9, 1000, 1000), (8, 2000, 1000), (8, 500, 1000), (8, 6000, 1000))
    buckets = made(BucketsConfig(), 768, sizes, 4)
    assert [buckets.sizes[number] for number in buckets.number_of(np.array([0, 9, 17, 25]))] == [
        (768, 768),
        (576, 1024),
        (1024, 576),
        (576, 1024),
    ]
    assert buckets.describe() == "576 x 1024: 8, 768 x 768: 9, 1024 x 576: 16"


def test_sizes_with_less_than_a_batch_are_given_up() -> None:
    sizes = images((20, 100, 100), (3, 120, 100), (20, 200, 100))
    buckets = made(BucketsConfig(), 512, sizes, 8)
    assert buckets.sizes == ((512, 512), (384, 704))
    assert np.bincount(buckets.number_of(np.arange(43))).tolist() == [23, 20]


def test_there_are_at_most_so_many_shapes() -> None:
    sizes = images(*((20 + n, 60 + 10 * n, 100) for n in range(10)))
    assert len(made(BucketsConfig(), 768, sizes, 4).sizes) > 3
    buckets = made(BucketsConfig(max_shapes=3), 768, sizes, 4)
    assert len(buckets.sizes) == 3


def test_too_few_images_make_one_bucket_of_their_own_shape() -> None:
    assert made(BucketsConfig(), 512, images((3, 200, 100)), 8).sizes == ((384, 704),)


@pytest.mark.parametrize("count", [1, BLOCK - 1, BLOCK, 100 * BLOCK + 7])
def test_members_are_found_as_in_lists_of_them(count: int) -> None:
    """`below` and `members` against what they stand for, also where a bucket has none in many blocks."""
    rng = np.random.default_rng(0)
    number_of = np.where(np.arange(count) // BLOCK % 3 == 1, 2, rng.choice(3, count, p=[0.9, 0.0999, 0.0001]))
    buckets = Buckets([(8, 8), (8, 9), (8, 10)], count, number_of.__getitem__)
    for number in buckets.numbers:
        members = np.flatnonzero(number_of == number)
        places = rng.permutation(len(members))
        np.testing.assert_array_equal(buckets.members(number, places), members[places])
        for bound in (0, 1, count // 2, count - 1, count):
            assert buckets.below(number, bound) == (members < bound).sum()
    assert buckets.describe().endswith(f"10 x 8: {(number_of == 2).sum()}")


def test_each_image_is_where_its_own_nearest_size_is() -> None:
    """The rule, image by image, with sizes given up until all that are left have a batch."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(50, 400, (5000, 2))
    buckets = made(BucketsConfig(max_shapes=4), 768, sizes, 300)
    left = list(bucket_sizes(768, 64, 2.0))
    while True:
        away = [[abs(np.log(w / h) - np.log(width / height)) for height, width in left] for w, h in sizes]
        nearest = np.argmin(away, axis=1)
        counts = np.bincount(nearest, minlength=len(left))
        if counts.min() >= 300 and len(left) <= 4:
            break
        del left[counts.argmin()]
    assert buckets.sizes == tuple(left)
    np.testing.assert_array_equal(buckets.number_of(np.arange(len(sizes))), nearest)
