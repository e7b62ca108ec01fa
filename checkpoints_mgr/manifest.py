"""MANIFEST.json: what a committed step holds, where each tensor lies, and the digests of it all."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from checkpoints_mgr.digests import canonical_json, document_digest
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.state import DTYPES, JSON, TensorSpec

FORMAT = "ckptmgr"
VERSION = 1


@dataclass(frozen=True)
class FileEntry:
    """One file: plain name, bytes, the rank that wrote it, and xxh3_64 of each chunk of chunk_bytes."""

    name: str
    size_bytes: int
    rank: int
    data_offset: int
    chunk_bytes: int
    digests: tuple[str, ...]

    def to_row(self) -> dict[str, JSON]:
        """The entry as the manifest holds it."""
        return {
            "name": self.name,
            "size": self.size_bytes,
            "rank": self.rank,
            "data_off": self.data_offset,
            "chunk": self.chunk_bytes,
            "xxh3": list(self.digests),
        }

    @classmethod
    def from_row(cls, row: Mapping[str, JSON]) -> Self:
        """The inverse of to_row. KeyError when something is missing."""
        return cls(row["name"], row["size"], row["rank"], row["data_off"], row["chunk"], tuple(row["xxh3"]))


@dataclass(frozen=True)
class Placement:
    """Where a whole tensor lies: index into the manifest's files, byte offset from the file's start."""

    spec: TensorSpec
    file: int
    offset: int


@dataclass(frozen=True)
class Manifest:
    """The parsed record. created_ns: Unix time in nanoseconds."""

    save_id: str
    step: int
    created_ns: int
    world_size: int
    progress: dict[str, JSON]
    files: tuple[FileEntry, ...]
    tensors: tuple[Placement, ...]

    @property
    def data_bytes(self) -> int:
        """Bytes of all files but the manifest itself."""
        return sum(entry.size_bytes for entry in self.files)

    @property
    def components(self) -> list[str]:
        return sorted({placement.spec.component for placement in self.tensors})


def to_bytes(manifest: Manifest) -> bytes:
    """The file's content, its own digest included."""
    document: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "min_reader": VERSION,
        "save_id": manifest.save_id,
        "step": manifest.step,
        "created_ns": manifest.created_ns,
        "world_size": manifest.world_size,
        "progress": manifest.progress,
        "components": {component: {"kind": "whole"} for component in manifest.components},
        "files": [entry.to_row() for entry in manifest.files],
        "tensors": {
            placement.spec.name: {
                "dtype": placement.spec.dtype,
                "shape": list(placement.spec.shape),
                "pieces": [[0, placement.spec.numel, placement.file, placement.offset]],
            }
            for placement in manifest.tensors
        },
    }
    return canonical_json(document | {"digest": document_digest(document)})


def from_bytes(content: bytes, where: str) -> Manifest:
    """Parse and check a manifest; where: the path, for messages.

    CorruptCheckpointError: not what was written. CheckpointError: whole, but of a newer format.
    """
    try:
        document = json.loads(content)
        digest = document.pop("digest")
        found = document_digest(document)
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
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CorruptCheckpointError(f"{where}: incomplete manifest ({error!r})") from error
    _check_names(manifest, where)
    _check_tiling(manifest, where)
    return manifest


def _parse(document: Mapping[str, Any]) -> Manifest:
    files = tuple(FileEntry.from_row(row) for row in document["files"])
    tensors = []
    for name, row in document["tensors"].items():
        spec = TensorSpec(name, row["dtype"], tuple(row["shape"]))
        ((low, high, file, offset),) = row["pieces"]
        if spec.dtype not in DTYPES or (low, high) != (0, spec.numel):
            raise ValueError(f"tensor {name}: dtype {spec.dtype}, piece {low}:{high} of {spec.numel}")
        tensors.append(Placement(spec, file, offset))
    return Manifest(
        document["save_id"],
        document["step"],
        document["created_ns"],
        document["world_size"],
        document["progress"],
        files,
        tuple(tensors),
    )


def _check_names(manifest: Manifest, where: str) -> None:
    """A manifest must not lead the reader out of its own directory."""
    for entry in manifest.files:
        if "/" in entry.name or entry.name in ("", ".", "..") or entry.size_bytes < 0 or entry.chunk_bytes < 1:
            raise CorruptCheckpointError(f"{where}: bad file entry {entry.name!r}")


def _check_tiling(manifest: Manifest, where: str) -> None:
    """Tensors lie inside their files and do not overlap."""
    ends = {index: entry.data_offset for index, entry in enumerate(manifest.files)}
    for placement in sorted(manifest.tensors, key=lambda item: (item.file, item.offset, item.spec.size_bytes)):
        name = placement.spec.name
        if placement.file not in ends:
            raise CorruptCheckpointError(f"{where}: tensor {name} lies in file {placement.file}, which is not listed")
        end = placement.offset + placement.spec.size_bytes
        if placement.offset < ends[placement.file] or end > manifest.files[placement.file].size_bytes:
            raise CorruptCheckpointError(f"{where}: tensor {name} overlaps another or the end of its file")
        ends[placement.file] = end
