"""Buckets hold every element once, and ranks share them equally."""

import numpy as np
import pytest

from checkpoints_mgr import Segment
from vpred_train.distributed.spans import Span
from vpred_train.engine.device.buckets import ALIGN_ELEMENTS, MAX_TENSORS, LocalParts, make_buckets


def spans_of(seed: int, count: int) -> list[Span]:
    """Tensors of random sizes: matrices, which decay, vectors and embeddings, which do not."""
    rng = np.random.default_rng(seed)
    found, start = [], 0
    for number in range(count):
        shape = tuple(rng.integers(1, 40, rng.integers(1, 4)).tolist())
        stop = start + int(np.prod(shape))
        name = f"{'embedding' if rng.random() < 0.1 else 'layer'}.{number}"
        found.append(Span(name, shape, start, stop))
        start = stop
    return found


@pytest.mark.parametrize(("count", "ranks"), [(1, 1), (1, 3), (40, 2), (400, 8), (400, 512)])
def test_buckets_hold_each_tensor_once_padded_and_of_one_kind(count: int, ranks: int) -> None:
    spans = spans_of(count, count)
    buckets = make_buckets(spans, ranks, 5000)
    assert sorted((span for bucket in buckets for span in bucket.spans), key=spans.index) == spans
    for bucket in buckets:
        assert len({span.decays for span in bucket.spans}) == 1
        assert len(bucket.spans) <= MAX_TENSORS
        used = sum(span.stop - span.start for span in bucket.spans)
        assert used <= 5000 or len(bucket.spans) == 1
        assert sum(bucket.lengths) == bucket.size
        assert bucket.size % (ranks * ALIGN_ELEMENTS) == 0
        assert 0 <= bucket.size - used < ranks * ALIGN_ELEMENTS
    kinds = [bucket.decays for bucket in buckets]
    assert kinds == sorted(kinds, reverse=True)


def test_buckets_go_from_the_networks_end_to_its_beginning() -> None:
    spans = [Span(f"{number}", (10, 10), 100 * number, 100 * number + 100) for number in range(6)]
    buckets = make_buckets(spans, 1, 250)
    assert [[span.name for span in bucket.spans] for bucket in buckets] == [["5", "4"], ["3", "2"], ["1", "0"]]


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_segments_of_all_ranks_hold_each_element_once(ranks: int) -> None:
    """Each rank's array of parts, filled from the buckets, gives the tensors back by its segments."""
    spans = spans_of(1, 60)
    flat = np.arange(1, spans[-1].stop + 1, dtype=np.float64)
    buckets = make_buckets(spans, ranks, 3000)
    arrays = []
    for bucket in buckets:
        values = np.zeros(bucket.size)
        for span, start in bucket.places():
            values[start : start + span.stop - span.start] = flat[span.start : span.stop]
        arrays.append(values)
    found, times = np.zeros_like(flat), np.zeros(flat.size, int)
    by_name = {span.name: span for span in spans}
    for rank in range(ranks):
        local = LocalParts(buckets, rank, ranks)
        parts = [values[part] for values, part in zip(arrays, local.slices, strict=True)]
        together = np.concatenate(parts)
        assert [together[place].tolist() for place in local.places] == [part.tolist() for part in parts]
        for each in local.segments():
            assert isinstance(each, Segment)
            start = by_name[each.tensor].start
            found[start + each.low : start + each.high] = together[each.start : each.start + each.high - each.low]
            times[start + each.low : start + each.high] += 1
    np.testing.assert_array_equal(found, flat)
    assert (times == 1).all()
