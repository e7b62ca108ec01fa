"""Locates the samples of a source in a cache. One rank finds them; the other ranks and all workers map the result."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.cache.cache import Cache, Rows, Table
from data.cache.shards import Shard, canonical
from data.images.size import Size
from data.loading.fetcher import Arrays
from data.sources.columns import Columns, mapped_again, string_at, string_columns, write_columns

VERSION = "1"
MOMENTS = ("moments", "mirrored")


@dataclass(frozen=True)
class Entries:
    """Holds the cache rows of all samples.

    moments: rows (n,) of the moments; if training flips, a second array for the mirrored images.
    captions: rows (c,) of all captions.
    caption_ends: where each sample's captions end in `captions`, (n,); None if each sample has one caption.
    empty: row of the empty caption.
    shapes: shape of the moments, by the sample's size.
    squares: table of entries that are looked up by key, such as those of held-out images.
    path, seal: path and digest of the file that the arrays are mapped from.
    """

    cache: Cache
    moments: tuple[Rows, ...]
    captions: Rows
    caption_ends: NDArray[np.int64] | None
    empty: int
    shapes: dict[Size, tuple[int, ...]]
    squares: Table | None = None
    path: Path | None = None
    seal: str = ""

    def caption_count(self, sample_id: int) -> int:
        """Return the number of a sample's captions."""
        return 1 if self.caption_ends is None else self.caption_ends.item(sample_id) - self._first_caption(sample_id)

    def _first_caption(self, sample_id: int) -> int:
        if self.caption_ends is None:
            return sample_id
        return self.caption_ends.item(sample_id - 1) if sample_id else 0

    def read_into(self, sample_id: int, flipped: bool, caption: int | None, into: Arrays) -> None:
        """Fill `moments` (2 C, h, w) float32, mean above log-variance, and `features` (tokens, width) float32.

        caption: number of one of the sample's captions; None: the empty caption.
        """
        self.cache.read_into(self.moments[flipped].item(sample_id), into["moments"])
        row = self.empty if caption is None else self.captions.item(self._first_caption(sample_id) + caption)
        self.cache.read_into(row, into["features"])

    def __reduce__(self) -> tuple[Callable[..., "Entries"], tuple[Any, ...]]:
        # A worker process maps the same file instead of getting a copy.
        if self.path is None:
            return Entries, tuple(vars(self).values())
        return mapped_entries, (self.path, self.seal, self.cache.folder)


def write_entries(entries: Entries, path: Path) -> Entries:
    """Replace the file `path` atomically, and return the same entries mapped from it.

    Raises OSError or SafetensorError: when the file cannot be written.
    """
    shards, layouts = entries.cache.shards, list[Any]()
    numbers: dict[tuple[str, tuple[int, ...]], int] = {}
    for shard in shards:
        if numbers.setdefault((canonical(shard.spec), shard.shape), len(layouts)) == len(layouts):
            layouts.append([shard.spec, shard.shape])
    columns = {
        **string_columns("shard_name", [shard.name for shard in shards]),
        "shard_layout": np.array([numbers[canonical(each.spec), each.shape] for each in shards], np.int32),
        "shard_places": np.array([(each.count, each.keys_at, each.sums_at, each.values_at) for each in shards]),
        **dict(zip(MOMENTS, entries.moments, strict=False)),
        "captions": entries.captions,
    }
    if entries.caption_ends is not None:
        columns["caption_ends"] = entries.caption_ends
    if entries.squares is not None:
        columns |= {f"square_{name}": array for name, array in vars(entries.squares).items()}
    facts = {"version": VERSION, "layouts": layouts, "empty": entries.empty, "shapes": list(entries.shapes.items())}
    seal = write_columns(path, columns, {name: json.dumps(fact) for name, fact in facts.items()}).seal
    return mapped_entries(path, seal, entries.cache.folder)


def mapped_entries(path: Path, seal: str, cache: Path) -> Entries:
    """Return the entries that `write_entries` has written to `path`. cache: the cache's folder.

    Raises RuntimeError: when the file was replaced since.
    """
    found = mapped_again(path, seal)
    columns, facts = found.columns, {name: json.loads(fact) for name, fact in found.facts.items()}
    squares = None
    if "square_rows" in columns:
        squares = Table(columns["square_high"], columns["square_low"], columns["square_rows"])
    return Entries(
        cache=Cache(cache, _shards(cache, columns, facts["layouts"])),
        moments=tuple(columns[name] for name in MOMENTS if name in columns),
        captions=columns["captions"],
        caption_ends=columns.get("caption_ends"),
        empty=facts["empty"],
        shapes={Size(*size): tuple(shape) for size, shape in facts["shapes"]},
        squares=squares,
        path=path,
        seal=seal,
    )


def _shards(folder: Path, columns: Columns, layouts: Sequence[Any]) -> list[Shard]:
    shards, first_row = [], 0
    for number, (layout, places) in enumerate(zip(columns["shard_layout"], columns["shard_places"], strict=True)):
        (spec, shape), name = layouts[layout], string_at(columns, "shard_name", number)
        count, keys_at, sums_at, values_at = places.tolist()
        shards.append(Shard(folder, name, spec, tuple(shape), count, keys_at, sums_at, values_at, first_row))
        first_row += count
    return shards
