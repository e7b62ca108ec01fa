"""Computes xxh3 digests. A file is hashed in chunks, so that a byte range is checked by reading its chunks alone."""

import json
from collections.abc import Iterable, Iterator

import xxhash

CHUNKS_PER_FILE = 64
MIN_CHUNK_BYTES = 64 << 10
MAX_CHUNK_BYTES = 16 << 20


def chunk_bytes_of(size_bytes: int) -> int:
    """Return the chunk length in bytes for a file of this size.

    A file has about 64 chunks. This bounds the manifest's size, and what a partial read reads in excess at its ends.
    """
    chunk_bytes = -(-size_bytes // CHUNKS_PER_FILE)
    rounded = -(-chunk_bytes // MIN_CHUNK_BYTES) * MIN_CHUNK_BYTES
    return min(max(rounded, MIN_CHUNK_BYTES), MAX_CHUNK_BYTES)


class ChunkHasher:
    """Hashes a stream of bytes in chunks of chunk_bytes. The blocks that arrive may have any length."""

    def __init__(self, chunk_bytes: int) -> None:
        self._chunk_bytes = chunk_bytes
        self._room_bytes = chunk_bytes
        self._current = xxhash.xxh3_64()
        self._done: list[str] = []

    def passing(self, blocks: Iterable[memoryview]) -> Iterator[memoryview]:
        """Yield the blocks cut into pieces of at most a chunk, hashing each as it passes."""
        for block in blocks:
            rest = block
            while rest:
                piece, rest = rest[: self._room_bytes], rest[self._room_bytes :]
                self._current.update(piece)
                self._room_bytes -= len(piece)
                if self._room_bytes == 0:
                    self._close_chunk()
                yield piece

    def digests(self) -> list[str]:
        """End the stream and return the chunk digests (xxh3_64, 16 hex digits each) of all that has passed."""
        if self._room_bytes < self._chunk_bytes:
            self._close_chunk()
        return self._done

    def _close_chunk(self) -> None:
        self._done.append(self._current.hexdigest())
        self._current = xxhash.xxh3_64()
        self._room_bytes = self._chunk_bytes


def canonical_json(document: object) -> bytes:
    """Encode a document as its one canonical byte string: sorted keys, no spaces, ASCII escapes, no NaN."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def document_digest(document: object) -> str:
    """Return the digest of a JSON document's canonical form."""
    return text_digest(canonical_json(document))


def text_digest(content: bytes) -> str:
    """Return the digest of a document's bytes."""
    return f"xxh3_128:{xxhash.xxh3_128_hexdigest(content)}"
