"""The safetensors container (github.com/huggingface/safetensors, "Format"), written without a copy of the data.

Eight bytes with the header's length (little endian), a JSON header padded with spaces, then the tensors end to
end. Ours starts the data at a multiple of 4096 bytes and puts wide dtypes first, so that each tensor is aligned.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr.state import DTYPES, TensorSpec

ALIGNMENT_BYTES = 4096


class TensorFile:
    """The plan of one file: header bytes and where each tensor goes. specs: tensors of one component."""

    def __init__(self, specs: Sequence[TensorSpec]) -> None:
        self.order = sorted(specs, key=lambda spec: (-DTYPES[spec.dtype].itemsize, spec.name))
        entries: dict[str, dict[str, object]] = {}
        position = 0
        for spec in self.order:
            end = position + spec.size_bytes
            entries[spec.key] = {"dtype": spec.dtype, "shape": spec.shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        self.data_offset = -(-(8 + len(text)) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
        padded_bytes = self.data_offset - 8
        self.header = padded_bytes.to_bytes(8, "little") + text.ljust(padded_bytes)
        self.size_bytes = self.data_offset + position

    def offsets(self) -> dict[str, int]:
        """Full tensor name -> byte offset from the start of the file."""
        result = {}
        position = self.data_offset
        for spec in self.order:
            result[spec.name] = position
            position += spec.size_bytes
        return result

    def blocks(self, tensors: Mapping[str, NDArray[Any]]) -> Iterator[memoryview]:
        """The file's bytes in order: the header, then one view for each tensor."""
        yield memoryview(self.header)
        for spec in self.order:
            yield byte_view(tensors[spec.name], spec.dtype)


def byte_view(tensor: NDArray[Any], dtype: str) -> memoryview:
    """Little-endian, C-ordered bytes of a tensor; a copy only when it is stored otherwise in memory."""
    plain = np.asarray(tensor, dtype=DTYPES[dtype], order="C")
    return plain.reshape(-1).view(np.uint8).data
