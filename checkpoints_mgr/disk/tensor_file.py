"""Writes the safetensors container (github.com/huggingface/safetensors, "Format") without a copy of the data.

A file has eight bytes with the header's length (little endian), a JSON header padded with spaces, then the tensors end
to end. This writer starts the data at a multiple of 4096 bytes and puts wide dtypes first, so that each tensor is
aligned. MindSpore's reader needs the header's entries in the order of the data, with no gap.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.state import DTYPES, Parts, Range

ALIGNMENT_BYTES = 4096


class TensorFile:
    """Plans one file of ranges: the header's bytes and the offset of each range.

    ranges: in the file's order, sorted by `wide_first`.
    full_names: names include the component, for files that several components share.
    """

    def __init__(
        self, ranges: Sequence[Range], metadata: Mapping[str, str] | None = None, *, full_names: bool = False
    ) -> None:
        self._ranges = ranges
        entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        self._positions = []
        position = 0
        for part in ranges:
            end = position + part.size_bytes
            key = f"{part.spec.component}/{part.key}" if full_names else part.key
            entries[key] = {"dtype": part.spec.dtype, "shape": part.shape, "data_offsets": [position, end]}
            self._positions.append(position)
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        self.data_offset = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        padded_bytes = self.data_offset - 8
        self.header = padded_bytes.to_bytes(8, "little") + text.ljust(padded_bytes)
        self.size_bytes = self.data_offset + position

    def offsets(self) -> list[tuple[Range, int]]:
        """Return each range with its offset in bytes from the start of the file."""
        starts = (self.data_offset + position for position in self._positions)
        return list(zip(self._ranges, starts, strict=True))


def wide_first(part: Range) -> int:
    """Return the sort key that aligns each tensor of a file: wide dtypes come first."""
    return -DTYPES[part.spec.dtype].itemsize


def blocks(header: bytes, parts: Parts) -> Iterator[memoryview]:
    """Yield a file's bytes: the header, then one view for each part."""
    yield memoryview(header)
    for part, values in parts:
        yield byte_view(values, part.spec.dtype)


def byte_view(values: NDArray[Any], dtype: str) -> memoryview:
    """Return an array's bytes, little-endian and in C order. It copies only an array that is stored otherwise."""
    plain = np.asarray(values, dtype=DTYPES[dtype], order="C")
    return plain.reshape(-1).view(np.uint8).data
