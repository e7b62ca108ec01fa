"""What one rank does to a save's directory, and how rank 0 commits it. No collectives here."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from checkpoints_mgr import storage
from checkpoints_mgr.digests import CHUNK_BYTES, ChunkHasher, canonical_json
from checkpoints_mgr.errors import CheckpointError
from checkpoints_mgr.layout import (
    MANIFEST,
    MODEL_INDEX,
    TMP_PREFIX,
    TRASH_PREFIX,
    share_name,
    shares,
    step_name,
    steps_in,
)
from checkpoints_mgr.manifest import FileEntry, Manifest, Placement, from_bytes, to_bytes
from checkpoints_mgr.state import JSON, State, TensorSpec
from checkpoints_mgr.tensor_file import TensorFile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class WrittenFile:
    """A file on the device, and the byte offset of each tensor in it."""

    entry: FileEntry
    offsets: dict[str, int]

    def to_row(self) -> dict[str, JSON]:
        """What this rank tells the others."""
        return {"entry": self.entry.to_row(), "offsets": self.offsets}

    @classmethod
    def from_row(cls, row: Mapping[str, JSON]) -> Self:
        return cls(FileEntry.from_row(row["entry"]), row["offsets"])


def prepare(root: Path, target: Path, tmp: Path) -> None:
    """Rank 0, before the others write: remove what killed saves left, make the save's own directory."""
    storage.make_root(root)
    remove_leftovers(root)
    if storage.is_occupied(target):
        raise CheckpointError(f"{target} exists already; move it away or continue from it")
    storage.make_dir(tmp)


def remove_leftovers(root: Path) -> None:
    """Remove the directories of killed saves and of interrupted removals; a failure is logged only."""
    for name in storage.list_names(root):
        if name.startswith((TMP_PREFIX, TRASH_PREFIX)):
            logger.info("removing %s, left by an interrupted save", root / name)
            discard(root / name)


def discard(path: Path) -> None:
    """Remove a directory that nobody needs, if it is there; a failure is logged only."""
    try:
        if storage.is_occupied(path):
            storage.remove_tree(path)
    except OSError as error:
        logger.warning("cannot remove %s: %s", path, error)


def write_share(tmp: Path, state: State, specs: Sequence[TensorSpec], rank: int, world_size: int) -> list[WrittenFile]:
    """Write and flush this rank's files: its share of each component, and on rank 0 the model's index."""
    all_shares = shares(specs, world_size)
    written = []
    for component in sorted({spec.component for spec in all_shares[rank]}):
        mine = [spec for spec in all_shares[rank] if spec.component == component]
        plan = TensorFile(mine)
        hasher = ChunkHasher(CHUNK_BYTES)
        name = share_name(component, rank, world_size)
        storage.write_new(tmp / name, plan.size_bytes, hasher.passing(plan.blocks(state.whole)))
        digests = tuple(hasher.digests())
        entry = FileEntry(name, plan.size_bytes, rank, plan.data_offset, CHUNK_BYTES, digests)
        written.append(WrittenFile(entry, plan.offsets()))
    if rank == 0:
        written.append(_write_model_index(tmp, all_shares))
    storage.sync_dir(tmp)
    return written


def _write_model_index(tmp: Path, all_shares: Sequence[Sequence[TensorSpec]]) -> WrittenFile:
    """The index by which Hugging Face tools find the model's tensors among the ranks' files."""
    model = [(spec, rank) for rank, share in enumerate(all_shares) for spec in share if spec.component == "model"]
    content = canonical_json(
        {
            "metadata": {"total_size": sum(spec.size_bytes for spec, _ in model)},
            "weight_map": {spec.key: share_name("model", rank, len(all_shares)) for spec, rank in model},
        }
    )
    hasher = ChunkHasher(CHUNK_BYTES)
    storage.write_new(tmp / MODEL_INDEX, len(content), hasher.passing([memoryview(content)]))
    entry = FileEntry(MODEL_INDEX, len(content), 0, 0, CHUNK_BYTES, tuple(hasher.digests()))
    return WrittenFile(entry, {})


def merge(
    save_id: str, step: int, state: State, specs: Sequence[TensorSpec], votes: Sequence[Sequence[Mapping[str, JSON]]]
) -> Manifest:
    """The manifest of what all ranks say they wrote. votes: by rank, the rows of their files."""
    files = [WrittenFile.from_row(row) for vote in votes for row in vote]
    spec_of = {spec.name: spec for spec in specs}
    placements = [
        Placement(spec_of[name], index, offset)
        for index, written in enumerate(files)
        for name, offset in written.offsets.items()
    ]
    return Manifest(
        save_id=save_id,
        step=step,
        created_ns=time.time_ns(),
        world_size=len(votes),
        progress=state.progress,
        files=tuple(written.entry for written in files),
        tensors=tuple(sorted(placements, key=lambda placement: placement.spec.name)),
    )


def commit(root: Path, tmp: Path, target: Path, manifest: Manifest) -> int:
    """Rank 0, after a unanimous vote: the manifest, then the rename that makes the step exist.

    Returns the step's bytes on disk. An error before the rename leaves no step; one after it says so.
    """
    for entry in manifest.files:
        size_bytes = storage.file_size(tmp / entry.name)
        if size_bytes != entry.size_bytes:
            raise CheckpointError(f"{tmp / entry.name} has {size_bytes} bytes, its writer says {entry.size_bytes}")
    content = to_bytes(manifest)
    part = tmp / f"{MANIFEST}.part"
    storage.write_new(part, len(content), [memoryview(content)])
    storage.rename(part, tmp / MANIFEST)
    storage.sync_dir(tmp)
    try:
        storage.rename(tmp, target)
    except OSError:
        # NFS may carry out a rename and report the retransmitted request as failed: look whose step it is.
        if not _is_committed(target, manifest.save_id):
            raise
    try:
        storage.sync_dir(root)
    except OSError as error:
        raise CheckpointError(f"{target} is in place, but may not outlive a power cut: {error}") from error
    return manifest.data_bytes + len(content)


def _is_committed(target: Path, save_id: str) -> bool:
    try:
        path = target / MANIFEST
        return from_bytes(storage.read_bytes(path), str(path)).save_id == save_id
    except (OSError, CheckpointError):
        return False


def retain(root: Path, keep_last: int, saved_step: int, save_id: str) -> None:
    """Rank 0, after a commit: remove all but the newest keep_last steps, never the one just saved.

    A step is renamed first, so that no half-removed one is ever taken for a checkpoint. Failures are logged only.
    """
    try:
        for step in steps_in(storage.list_names(root))[keep_last:]:
            if step != saved_step:
                trash = root / f"{TRASH_PREFIX}{step_name(step)}-{save_id}"
                storage.rename(root / step_name(step), trash)
                storage.sync_dir(root)
                discard(trash)
    except OSError as error:
        logger.warning("cannot remove old checkpoints in %s: %s", root, error)
