"""Writes one rank's files into a save's directory, and commits it on a leader. It makes no collectives."""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.digests import ChunkHasher, canonical_json, chunk_bytes_of
from checkpoints_mgr.disk.layout import MANIFEST, MODEL, MODEL_INDEX, share_name, step_name, tmp_name
from checkpoints_mgr.disk.manifest import FileEntry, Manifest, Piece, Placement, fault_of, from_bytes, to_bytes
from checkpoints_mgr.disk.tensor_file import TensorFile, blocks, wide_first
from checkpoints_mgr.errors import CheckpointError, CheckpointFaultError
from checkpoints_mgr.nodes import Nodes
from checkpoints_mgr.state import JSON, Parts, Range, TensorSpec

logger = logging.getLogger(__name__)

VISIBLE_TIMEOUT_S = 30.0  # above the attribute caches of network file systems

Row = dict[str, JSON]


@dataclass(frozen=True)
class Attempt:
    """Describes one try to save a step. It is the same on all ranks that share disks.

    tmp: the directory to which files are written.
    target: the directory that makes it a step.
    """

    root: Path
    step: int
    save_id: str
    owner: str
    nodes: Nodes
    node: str

    @property
    def tmp(self) -> Path:
        return self.root / tmp_name(self.step, self.save_id, self.owner)

    @property
    def target(self) -> Path:
        return self.root / step_name(self.step)


def discard(*paths: Path) -> None:
    """Remove directories that no process needs, if they exist. A failure is only logged."""
    for path in paths:
        try:
            if storage.is_occupied(path):
                storage.remove_tree(path)
        except OSError as error:
            logger.warning("cannot remove %s: %s", path, error)


def write_share(attempt: Attempt, parts: Parts, index: Sequence[Sequence[Range]], rank: int) -> list[Row]:
    """Write and flush this rank's files, one for each component. A node's leader also writes the model's index.

    A sharded model has none, since other tools cannot join ranges of tensors.

    index: ranges of replicated tensors, by rank.
    Returns a row for each file, which this rank sends to the others.
    """
    tmp, world_size = attempt.tmp, len(index)
    if not storage.wait_until_visible(tmp, VISIBLE_TIMEOUT_S):
        raise CheckpointError(f"{tmp} does not exist; give all ranks the same checkpoint directory, on shared disks")
    by_component: dict[str, Parts] = defaultdict(list)
    for part, values in parts:
        by_component[part.spec.component].append((part, values))
    rows = []
    with ExitStack() as files:
        for component, unsorted in sorted(by_component.items()):
            mine = sorted(unsorted, key=lambda each: (wide_first(each[0]), each[0].spec.name, each[0].low))
            plan = TensorFile([part for part, _ in mine])
            name = share_name(component, rank, world_size)
            entry = _write(files, tmp / name, plan.size_bytes, blocks(plan.header, mine), rank, plan.data_offset)
            pieces = [[part.spec.name, part.low, part.high, offset] for part, offset in plan.offsets()]
            rows.append({"entry": entry.to_row(), "pieces": pieces})
        if attempt.nodes.leads(rank) and any(part.spec.component == MODEL for share in index for part in share):
            content = _model_index(
                [index[each] if each in attempt.nodes.ranks(attempt.node) else [] for each in range(world_size)]
            )
            entry = _write(files, tmp / MODEL_INDEX, len(content), [memoryview(content)], rank, 0)
            rows.append({"entry": entry.to_row(), "pieces": []})
    storage.sync_dir(tmp)
    return rows


def _write(
    files: ExitStack, path: Path, size_bytes: int, content: Iterable[memoryview], rank: int, data_offset: int
) -> FileEntry:
    """Write a file and hash it on the way. The file is flushed when `files` ends.

    The first such flush commits the file system's journal, so that the others have little left to do.
    """
    hasher = ChunkHasher(chunk_bytes_of(size_bytes))
    files.enter_context(storage.new_file(path, size_bytes, hasher.passing(content)))
    return FileEntry(path.name, size_bytes, rank, data_offset, chunk_bytes_of(size_bytes), tuple(hasher.digests()))


def _model_index(index: Sequence[Sequence[Range]]) -> bytes:
    """Return the index with which Hugging Face tools find the model's tensors among the ranks' files."""
    model = [(part, rank) for rank, share in enumerate(index) for part in share if part.spec.component == MODEL]
    return canonical_json(
        {
            "metadata": {"total_size": sum(part.size_bytes for part, _ in model)},
            "weight_map": {part.key: share_name(MODEL, rank, len(index)) for part, rank in model},
        }
    )


def merge(
    attempt: Attempt,
    specs: Sequence[TensorSpec],
    whole: Collection[str],
    rows_of_ranks: Sequence[Sequence[Mapping[str, JSON]]],
    facts: Mapping[str, dict[str, JSON]],
) -> Manifest:
    """Build a node's manifest from what all ranks report to have written.

    specs: the specs of all tensors.
    whole: names of the replicated tensors, which each node stores for itself.
    facts: progress, record and metrics.
    Raises CheckpointError: when the ranks' parts do not make up each tensor exactly once.
    """
    pieces: dict[str, list[Piece]] = {spec.name: [] for spec in specs}
    files: list[FileEntry] = []
    for rank, rows in enumerate(rows_of_ranks):
        node = attempt.nodes.of_rank[rank]
        for row in rows:
            placed = [piece for piece in row["pieces"] if node == attempt.node or piece[0] not in whole]
            if placed or node == attempt.node:
                for name, low, high, offset in placed:
                    pieces[name].append(Piece(low, high, len(files), offset))
                files.append(replace(FileEntry.from_row(row["entry"]), node=node))
    manifest = Manifest(
        save_id=attempt.save_id,
        step=attempt.step,
        created_ns=time.time_ns(),
        world_size=len(rows_of_ranks),
        progress=facts["progress"],
        record=facts["record"],
        metrics=facts["metrics"],
        files=tuple(files),
        node=attempt.node,
        tensors={
            spec.name: Placement(spec, tuple(sorted(pieces[spec.name], key=lambda piece: (piece.low, piece.high))))
            for spec in specs
        },
    )
    if fault := fault_of(manifest):
        raise CheckpointError(f"the ranks' parts do not fit together: {fault}")
    return manifest


def commit(attempt: Attempt, manifest: Manifest) -> int:
    """Write the manifest, then make the step exist by a rename. The leader calls this after a unanimous vote.

    Returns the step's size on disk in bytes. An error before the rename leaves no step; an error after it says so.
    """
    tmp, target = attempt.tmp, attempt.target
    for entry in manifest.local_files:
        storage.wait_until_visible(tmp / entry.name, VISIBLE_TIMEOUT_S)
        size_bytes = storage.file_size(tmp / entry.name)
        if size_bytes != entry.size_bytes:
            raise CheckpointFaultError(f"{tmp / entry.name} has {size_bytes} bytes, its writer says {entry.size_bytes}")
    content = to_bytes(manifest)
    storage.write_new(tmp / MANIFEST, len(content), [memoryview(content)])
    storage.sync_dir(tmp)
    try:
        storage.rename(tmp, target)
    except OSError as error:
        # NFS may carry out a rename and report the retransmitted request as failed: check which save made the step.
        owner = save_id_of(target)
        if owner not in (None, attempt.save_id):
            raise CheckpointError(f"{target} was taken by another writer (save {owner})") from error
        if owner is None:
            raise
    try:
        storage.sync_dir(attempt.root)
    except OSError as error:
        raise CheckpointFaultError(f"{target} is complete, but may not survive a power cut: {error}") from error
    return manifest.data_bytes + len(content)


def save_id_of(target: Path) -> str | None:
    """Return the id of the save that made a step; None when there is no readable step."""
    try:
        path = target / MANIFEST
        return from_bytes(storage.read_bytes(path), str(path)).save_id
    except (OSError, CheckpointError):
        return None
