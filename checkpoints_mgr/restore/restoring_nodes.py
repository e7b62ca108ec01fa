"""Restores where each node keeps its own files. A step counts if all of its nodes have their part of the same save.

A rank gets its part of another node's files over the communicator, in verified chunks. So the number of ranks and
their placement on the nodes may change, and nodes may be added. No node of the save may be missing.
"""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.layout import step_name, steps_in
from checkpoints_mgr.disk.manifest import FileEntry, Manifest, from_bytes, to_bytes
from checkpoints_mgr.disk.reading import Wanted, lease, open_step, plan_reads, quarantine, read_local, read_wanted
from checkpoints_mgr.disk.tensor_file import byte_view
from checkpoints_mgr.disk.verified import remember_restored
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.nodes import Nodes
from checkpoints_mgr.state import Restored, State, wanted_parts
from checkpoints_mgr.votes import attempt, on_root, results_of, together

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """Describes a step that is complete: its save, and the nodes that have its parts."""

    step: int
    save_id: str
    nodes: tuple[str, ...]


class NodeRestorer:
    """Restores from the nodes' local disks.

    Every method is called by all ranks, and returns the same or raises the same CheckpointError on all.
    """

    def __init__(self, root: Path, comm: Communicator, node: str) -> None:
        self._root, self._comm, self._node = root, comm, node

    def latest(self) -> int | None:
        """Do as CheckpointManager.latest, but only for steps of which all nodes have their part."""
        offers = self._offers(self._nodes())
        return offers[0].step if offers else None

    def restore(self, template: State, step: int | Literal["latest"]) -> Restored | None:
        """Do as CheckpointManager.restore, but only for steps of which all nodes have their part."""
        nodes = self._nodes()
        offers = [offer for offer in self._offers(nodes) if step in ("latest", offer.step)]
        if step != "latest" and not offers:
            raise CheckpointError(f"cannot restore step {step}: the nodes do not have all parts of it")
        faults: dict[int, str] = {}
        for offer in offers:
            reads = self._node in offer.nodes and nodes.leads(self._comm.rank)
            with lease(self._root / step_name(offer.step)) if reads else nullcontext():
                restored, fault = self._restore_step(offer, nodes, template)
            if restored is not None:
                return replace(restored, quarantined=tuple(faults))
            faults[offer.step] = fault
        if not faults:
            return None
        raise CheckpointError(
            f"no checkpoint to restore in {self._root}, all candidates are corrupt: {'; '.join(faults.values())}"
        )

    def _nodes(self) -> Nodes:
        return Nodes(tuple(self._comm.allgather_object(self._node)))

    def _offers(self, nodes: Nodes) -> list[Offer]:
        """Return the steps that the nodes together have complete, the newest first."""
        leads = nodes.leads(self._comm.rank)
        parts = together(self._comm, f"cannot list {self._root}", lambda: _parts(self._root) if leads else [])
        holders: dict[tuple[int, str, tuple[str, ...]], set[str]] = {}
        for node, rows in zip(nodes.of_rank, parts, strict=True):
            for step, save_id, needed in rows:
                holders.setdefault((step, save_id, tuple(needed)), set()).add(node)
        for key, have in sorted(holders.items()):
            if have != set(key[2]):
                logger.warning("step %d lacks the parts of %s", key[0], ", ".join(sorted(set(key[2]) - have)))
        return [Offer(*key) for key, have in sorted(holders.items(), reverse=True) if have == set(key[2])]

    def _restore_step(self, offer: Offer, nodes: Nodes, template: State) -> tuple[Restored | None, str]:
        """Return the step, or a fault. Each node moves its faulty part to quarantine."""
        comm, what, directory = self._comm, f"cannot restore step {offer.step}", self._root / step_name(offer.step)
        own = self._node in offer.nodes
        # A node without a part uses the first node's manifest, as if all files were on other nodes.
        text = on_root(comm, what, lambda: to_bytes(open_step(directory)).decode(), nodes.leader(offer.nodes[0]))
        manifest = from_bytes(text.encode(), str(directory))
        wanted: dict[str, list[Wanted]] = {}

        def read_own() -> tuple[str, list[tuple[str, str]]]:
            nonlocal manifest
            if own:
                manifest = open_step(directory)
            wanted.update(plan_reads(manifest, wanted_parts(template)))
            fault = _fault(lambda: read_local(directory, manifest, wanted)) if own else ""
            of_others = [entry for entry in manifest.files if entry.name in wanted and entry.node != self._node]
            return fault, [(entry.node, entry.name) for entry in of_others]

        votes = together(comm, what, read_own)
        faults = {nodes.of_rank[rank]: fault for rank, (fault, _) in enumerate(votes) if fault}
        for node, name in sorted({(node, name) for _, asked in votes for node, name in asked}):
            fault = self._pass_on(what, directory, manifest, nodes.leader(node), name, wanted.get(name, []))
            if fault:
                faults[node] = fault
        if not faults:
            if own and nodes.leads(comm.rank):
                remember_restored(self._root, offer.step, manifest, template)
            state = State(template.whole, manifest.progress, template.shards, manifest.record)
            return Restored(offer.step, state, manifest.created_ns / 1e9), ""
        if self._node in faults and nodes.leads(comm.rank):
            quarantine(self._root, directory, faults[self._node])
        comm.barrier()
        return None, next(iter(faults.values()))

    def _pass_on(
        self, what: str, directory: Path, manifest: Manifest, owner: int, name: str, wanted: list[Wanted]
    ) -> str:
        """Broadcast one file from its node's leader; each rank takes what it wants. Return what is corrupt, or "".

        Raises CheckpointError, on all ranks: when the file cannot be read.
        """
        comm = self._comm
        blocks: Iterator[tuple[int, Any]] = iter(())
        if comm.rank == owner:
            (entry,) = [each for each in manifest.files if each.name == name]
            blocks = _verified_chunks(directory, entry)
        while True:
            vote = comm.broadcast_object(attempt(lambda: next(blocks, None)) if comm.rank == owner else None, owner)
            if vote["kind"] == "corrupt":
                return str(vote["error"])
            (result,) = results_of(what, {owner: vote})
            if result is None:
                return ""
            start, chunk = result
            content = byte_view(chunk, "U8")
            for offset, memory in wanted if comm.rank != owner else []:
                low, high = max(offset, start), min(offset + len(memory), start + len(content))
                if low < high:
                    memory[low - offset : high - offset] = content[low - start : high - start]


def _parts(root: Path) -> list[tuple[int, str, list[str]]]:
    """Return (step, save id, nodes that it needs) of each part in this node's root that passes `open_step`."""
    found = []
    for step in steps_in(storage.list_names(root)):
        try:
            manifest = open_step(root / step_name(step))
        except CorruptCheckpointError as error:
            logger.warning("skipping a corrupt checkpoint: %s", error)
        else:
            found.append((step, manifest.save_id, manifest.nodes))
    return found


def _verified_chunks(directory: Path, entry: FileEntry) -> Iterator[tuple[int, Any]]:
    """Yield (offset in bytes, uint8 array) of each chunk of a file, verified."""
    for start in range(0, entry.size_bytes, entry.chunk_bytes):
        chunk = np.empty(min(entry.chunk_bytes, entry.size_bytes - start), np.uint8)
        read_wanted(directory, entry, [(start, chunk.data)])
        yield start, chunk


def _fault(action: Any) -> str:
    """Run the action; return what is corrupt, or "" when nothing is."""
    try:
        action()
    except CorruptCheckpointError as error:
        return str(error)
    return ""
