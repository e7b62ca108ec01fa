"""Reads and writes MANIFEST.json.

It records what a committed step holds, where each element of each tensor lies, and the digests of it all.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from checkpoints_mgr.disk.digests import canonical_json, document_digest, text_digest
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.state import DTYPES, JSON, TensorSpec

FORMAT = "ckptmgr"
VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """Describes one file of a step.

    name: plain file name, without a directory.
    rank: the rank that wrote it.
    data_offset: where the tensors begin, in bytes from the file's start.
    digests: xxh3_64 of each chunk of chunk_bytes.
    node: the node on whose disks the file lies; "" on shared disks.
    """

    name: str
    size_bytes: int
    rank: int
    data_offset: int
    chunk_bytes: int
    digests: tuple[str, ...]
    node: str = ""

    def to_row(self) -> dict[str, JSON]:
        """Return the entry as the manifest holds it."""
        return {
            "name": self.name,
            "size": self.size_bytes,
            "rank": self.rank,
            "data_off": self.data_offset,
            "chunk": self.chunk_bytes,
            "xxh3": list(self.digests),
            **({"node": self.node} if self.node else {}),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, JSON]) -> Self:
        """Invert to_row. Raises KeyError: when something is missing."""
        digests, node = tuple(row["xxh3"]), row.get("node", "")
        return cls(row["name"], row["size"], row["rank"], row["data_off"], row["chunk"], digests, node)


class Piece(NamedTuple):  # there are thousands, and a frozen dataclass takes four times as long to make
    """Locates elements [low, high) of a tensor.

    file: index into the manifest's files.
    offset: where the elements begin, in bytes from the file's start.
    """

    low: int
    high: int
    file: int
    offset: int


class Placement(NamedTuple):
    """Locates a tensor: the pieces tile [0, numel) in this order."""

    spec: TensorSpec
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Manifest:
    """Holds the parsed manifest.

    created_ns: Unix time in nanoseconds.
    metrics: quality of the saved state by metric name, as the caller of the save reported it.
    node: the node on whose disks this manifest lies; "" on shared disks. A node's manifest names the node's local
    files, which hold all replicated tensors, and those files of other nodes that hold shards.
    """

    save_id: str
    step: int
    created_ns: int
    world_size: int
    progress: dict[str, JSON]
    record: dict[str, JSON]
    metrics: dict[str, float]
    files: tuple[FileEntry, ...]
    tensors: dict[str, Placement]
    node: str = ""

    @property
    def local_files(self) -> list[FileEntry]:
        """The files beside the manifest."""
        return [entry for entry in self.files if entry.node == self.node]

    @property
    def nodes(self) -> list[str]:
        """The nodes whose files together make up the step."""
        return sorted({entry.node for entry in self.files})

    @property
    def data_bytes(self) -> int:
        """The size in bytes of the files beside the manifest."""
        return sum(entry.size_bytes for entry in self.local_files)

    @property
    def components(self) -> list[str]:
        return sorted({placement.spec.component for placement in self.tensors.values()})


def to_bytes(manifest: Manifest) -> bytes:
    """Encode the manifest as the file's content, its own digest included."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "min_reader": VERSION,
        "save_id": manifest.save_id,
        "step": manifest.step,
        "created_ns": manifest.created_ns,
        "world_size": manifest.world_size,
        "node": manifest.node,
        "progress": manifest.progress,
        "record": manifest.record,
        "metrics": manifest.metrics,
        "files": [entry.to_row() for entry in manifest.files],
        "tensors": {
            name: {
                "dtype": placement.spec.dtype,
                "shape": list(placement.spec.shape),
                "pieces": [[piece.low, piece.high, piece.file, piece.offset] for piece in placement.pieces],
            }
            for name, placement in manifest.tensors.items()
        },
    }
    return canonical_json(document | {"digest": document_digest(document)})


def from_bytes(content: bytes, where: str) -> Manifest:
    """Parse and check a manifest.

    where: the path, for messages.
    Raises CorruptCheckpointError: when the content is not what was written.
    Raises CheckpointError: when it is intact, but of another or a newer format.
    """
    try:
        document = json.loads(content)
        digest = document["digest"]
        # The digest covers the text without the digest's entry. A comma follows the entry: sorted keys come after it.
        found = text_digest(content.replace(f'"digest":"{digest}",'.encode(), b"", 1))
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CorruptCheckpointError(f"{where}: not a manifest ({error})") from error
    if digest != found:
        raise CorruptCheckpointError(f"{where}: digest is {found}, the file says {digest}")
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{where}: format is {document.get('format')!r}, expected {FORMAT!r}")
    if document.get("min_reader", VERSION) > VERSION:
        raise CheckpointError(
            f"{where}: needs reader version {document['min_reader']}, this one is {VERSION}; install a newer vpred"
        )
    try:
        manifest = _parse(document)
        fault = fault_of(manifest)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"{where}: incomplete manifest ({error!r})") from error
    if fault:
        raise CorruptCheckpointError(f"{where}: {fault}")
    return manifest


def _parse(document: Mapping[str, Any]) -> Manifest:
    tensors = {}
    for name, row in document["tensors"].items():
        spec = TensorSpec(name, row["dtype"], tuple(row["shape"]))
        tensors[name] = Placement(spec, tuple(Piece(*piece) for piece in row["pieces"]))
    return Manifest(
        save_id=document["save_id"],
        step=document["step"],
        created_ns=document["created_ns"],
        world_size=document["world_size"],
        progress=document["progress"],
        record=document.get("record", {}),
        metrics=document.get("metrics", {}),
        files=tuple(FileEntry.from_row(row) for row in document["files"]),
        tensors=tensors,
        node=document.get("node", ""),
    )


def fault_of(manifest: Manifest) -> str:
    """Return what is impossible about a manifest; empty when nothing is.

    It finds names that leave the directory, elements that are stored nowhere or twice, and pieces that overlap or
    leave their file.
    """
    for entry in manifest.files:
        chunks = -(-entry.size_bytes // entry.chunk_bytes) if entry.chunk_bytes > 0 else -1
        if "/" in entry.name or entry.name in ("", ".", "..") or chunks != len(entry.digests):
            return f"bad file entry {entry.name!r}"
    in_files: list[tuple[int, int, int, str]] = []
    for name, placement in manifest.tensors.items():
        spec, position = placement.spec, 0
        if spec.dtype not in DTYPES:
            return f"tensor {name} has the unknown dtype {spec.dtype}"
        item_bytes = DTYPES[spec.dtype].itemsize
        for piece in placement.pieces:
            if piece.low != position or piece.high < piece.low:
                return f"tensor {name}: elements from {position} on are missing or stored twice"
            position = piece.high
            in_files.append((piece.file, piece.offset, (piece.high - piece.low) * item_bytes, name))
        if position != spec.numel:
            return f"tensor {name}: {position} elements of {spec.numel}"
    return _overlap(manifest, in_files)


def _overlap(manifest: Manifest, in_files: list[tuple[int, int, int, str]]) -> str:
    ends = {index: entry.data_offset for index, entry in enumerate(manifest.files)}
    for file, offset, size_bytes, name in sorted(in_files):
        if file not in ends:
            return f"tensor {name} lies in file {file}, which is not listed"
        if offset < ends[file] or offset + size_bytes > manifest.files[file].size_bytes:
            return f"tensor {name} overlaps another or the end of its file"
        ends[file] = offset + size_bytes
    return ""
