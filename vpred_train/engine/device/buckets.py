"""Divides the flat space into buckets, whose elements cross between ranks in one collective. Needs no MindSpore."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from checkpoints_mgr import Segment
from vpred_train.distributed.spans import Span

MAX_ELEMENTS = 1 << 25  # 128 MiB of float32: below HCCL's default buffer, and a small share of the gradients
MAX_TENSORS = 100  # MindSpore's compiler unrolls the sizes of a split by recursion, which it limits to 1000 levels
ALIGN_ELEMENTS = 128  # 512 bytes of float32, which HCCL and the vector units move at full speed


@dataclass(frozen=True)
class Bucket:
    """Holds tensors that lie one after the other in one flat array. All of them decay, or none does.

    size: elements of the array; it is padded with zeros so that each rank's part is aligned
    """

    spans: tuple[Span, ...]
    size: int

    @property
    def decays(self) -> bool:
        return self.spans[0].decays

    @property
    def lengths(self) -> tuple[int, ...]:
        """Return the tensors' numbers of elements, and that of the padding where there is some."""
        lengths = tuple(span.stop - span.start for span in self.spans)
        padding = self.size - sum(lengths)
        return (*lengths, padding) if padding else lengths

    def places(self) -> Iterator[tuple[Span, int]]:
        """Yield each tensor with its first element's place in the bucket."""
        return zip(self.spans, accumulate((span.stop - span.start for span in self.spans), initial=0), strict=False)


def make_buckets(spans: Sequence[Span], ranks: int, max_elements: int = MAX_ELEMENTS) -> tuple[Bucket, ...]:
    """Divide tensors into buckets: decaying tensors first, each kind from the network's end to its beginning.

    Backward finishes the last layers' gradients first, so that their collective starts while it continues.
    ranks: the number of ranks that share each bucket equally
    max_elements: size of a bucket; a larger tensor has a bucket for itself
    """
    buckets = []
    for decays in (True, False):
        chosen = [span for span in reversed(spans) if span.decays is decays]
        buckets += [_padded(group, ranks) for group in _groups(chosen, max_elements)]
    return tuple(buckets)


def _groups(spans: Iterable[Span], max_elements: int) -> Iterator[list[Span]]:
    group: list[Span] = []
    used = 0
    for span in spans:
        length = span.stop - span.start
        if group and (used + length > max_elements or len(group) == MAX_TENSORS):
            yield group
            group, used = [], 0
        group.append(span)
        used += length
    if group:
        yield group


def _padded(group: Sequence[Span], ranks: int) -> Bucket:
    unit = ranks * ALIGN_ELEMENTS
    used = sum(span.stop - span.start for span in group)
    return Bucket(tuple(group), -(-used // unit) * unit)


@dataclass(frozen=True)
class LocalParts:
    """Gives each rank an equal part of every bucket.

    rank, ranks: this rank among those that share the buckets; 0 of 1 where every rank keeps all elements
    """

    buckets: tuple[Bucket, ...]
    rank: int
    ranks: int

    @property
    def slices(self) -> tuple[slice, ...]:
        """Return this rank's part of each bucket."""
        lengths = [bucket.size // self.ranks for bucket in self.buckets]
        return tuple(slice(length * self.rank, length * (self.rank + 1)) for length in lengths)

    @property
    def places(self) -> tuple[slice, ...]:
        """Return the place of each part in an array of all of this rank's parts, one after the other."""
        stops = accumulate((each.stop - each.start for each in self.slices), initial=0)
        return tuple(slice(start, stop) for start, stop in pairwise(stops))

    def segments(self) -> list[Segment]:
        """List the elements of each tensor that this rank keeps, with their places in the array of all parts."""
        found = []
        for bucket, local, place in zip(self.buckets, self.slices, self.places, strict=True):
            for span, start in bucket.places():
                low, high = max(start, local.start), min(start + span.stop - span.start, local.stop)
                if low < high:
                    found.append(Segment(span.name, low - start, high - start, place.start + low - local.start))
        return found
