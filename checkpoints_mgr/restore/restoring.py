"""Restores the newest sound step by all ranks together: rank 0 decides and broadcasts, all ranks read and vote."""

import logging
import socket
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.digests import document_digest
from checkpoints_mgr.disk.layout import MANIFEST, QUARANTINE, step_name, steps_in
from checkpoints_mgr.disk.manifest import Manifest, from_bytes
from checkpoints_mgr.disk.reading import (
    check_step,
    lease,
    open_step,
    quarantine,
    read_manifest,
    read_parts,
    verify_file,
)
from checkpoints_mgr.disk.verified import remember_restored
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.restore.sharing import MIN_HOSTS, Share, pass_on, read_share
from checkpoints_mgr.state import Restored, State, wanted_parts, whole_specs
from checkpoints_mgr.votes import on_root, together

logger = logging.getLogger(__name__)


class Restorer:
    """Restores from shared disks.

    Every method is called by all ranks, and returns the same or raises the same CheckpointError on all.
    """

    def __init__(self, root: Path, comm: Communicator) -> None:
        self._root, self._comm = root, comm

    def latest(self) -> int | None:
        """Do as CheckpointManager.latest."""
        return on_root(self._comm, f"cannot list {self._root}", self._newest_plausible)

    def restore(self, template: State, step: int | Literal["latest"]) -> Restored | None:
        """Do as CheckpointManager.restore."""
        candidates = on_root(self._comm, f"cannot restore step {step}", lambda: self._candidates(step))
        faults: dict[int, str] = {}
        shares_reading = bool(candidates) and self._shares_reading(template)
        for candidate in candidates:
            with lease(self._root / step_name(candidate)) if self._comm.rank == 0 else nullcontext():
                restored, fault = self._restore_step(candidate, template, shares_reading)
            if restored is not None:
                return replace(restored, quarantined=tuple(faults))
            faults[candidate] = fault
        if not faults:
            return None
        raise CheckpointError(
            f"no checkpoint to restore in {self._root}, all candidates are corrupt: {'; '.join(faults.values())}"
        )

    def _steps(self) -> list[int]:
        return steps_in(storage.list_names(self._root))

    def _newest_plausible(self) -> int | None:
        for step in self._steps():
            try:
                open_step(self._root / step_name(step))
            except CorruptCheckpointError as error:
                logger.warning("skipping a corrupt checkpoint: %s", error)
            else:
                return step
        return None

    def _candidates(self, step: int | Literal["latest"]) -> list[int]:
        steps = self._steps()
        if step == "latest":
            quarantined = storage.list_names(self._root / QUARANTINE)
            if quarantined and not steps:
                # Starting from scratch without an error would hide that work was lost.
                raise CheckpointError(
                    f"no checkpoint to restore in {self._root}, all are in {QUARANTINE}/ ({', '.join(quarantined)}); "
                    f"move a repaired one back, or remove {QUARANTINE}/ to begin again"
                )
            return steps
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{self._root} has no such step; it has: {known}")
        return [step]

    def _shares_reading(self, template: State) -> bool:
        """Return whether each rank reads a share of the replicated tensors: on many hosts, if all want the same."""

        def look() -> tuple[str, str]:
            specs = [(spec.name, spec.dtype, spec.shape) for spec in whole_specs(template)]
            return socket.gethostname(), document_digest(specs)

        if self._comm.world_size < MIN_HOSTS:
            return False
        hosts, wanted = map(set, zip(*together(self._comm, "cannot restore", look), strict=True))
        return len(hosts) >= MIN_HOSTS and len(wanted) == 1

    def _restore_step(self, step: int, template: State, shares_reading: bool) -> tuple[Restored | None, str]:
        """Return the step, or the fault for which rank 0 has moved it to quarantine."""
        comm, what, directory = self._comm, f"cannot restore step {step}", self._root / step_name(step)
        manifests: list[Manifest] = []
        shares: list[Share] = []

        def read() -> Any:
            """Fill the template; return (file, fault) when something is corrupt, otherwise None."""
            try:
                manifests.append(from_bytes(text.encode(), str(directory / MANIFEST)))
                if comm.rank == 0:
                    check_step(directory, manifests[0])
                own = template
                if shares_reading:
                    own, alike = replace(template, whole={}), replace(template, shards={})
                    shares.extend(read_share(comm, directory, manifests[0], wanted_parts(alike)))
                read_parts(directory, manifests[0], wanted_parts(own))
            except CorruptCheckpointError as error:
                return error.file, str(error)
            return None

        text, fault = on_root(comm, what, lambda: _manifest_text(directory))
        if text:
            votes = together(comm, what, read)
            faults = [(rank, vote) for rank, vote in enumerate(votes) if vote]
            if not faults:
                (manifest,) = manifests
                if shares:
                    pass_on(comm, shares)
                if comm.rank == 0:
                    remember_restored(self._root, step, manifest, template)
                state = State(template.whole, manifest.progress, template.shards, manifest.record)
                return Restored(step, state, manifest.created_ns / 1e9), ""
            fault = on_root(comm, what, lambda: _second_look(directory, [file for _, (file, _) in faults]))
            if not fault:
                # Rank 0 reads what was committed, so the disk is right and the other host's view of it is wrong.
                rank, (_, message) = faults[0]
                raise CheckpointError(f"{what}: rank {rank} reads other bytes than rank 0; check its host: {message}")
        if comm.rank == 0:
            quarantine(self._root, directory, fault)
        comm.barrier()
        return None, fault


def _manifest_text(directory: Path) -> tuple[str, str]:
    """Return (the manifest's text, ""), unchecked, for all ranks to check; or ("", fault) when the step has none."""
    try:
        return read_manifest(directory).decode(errors="replace"), ""
    except CorruptCheckpointError as error:
        return "", str(error)


def _second_look(directory: Path, files: list[str]) -> str:
    """Check on rank 0 a step and these files, which some rank found corrupt. Return the fault; empty without one."""
    try:
        manifest = open_step(directory)
        for entry in manifest.files:
            if entry.name in files:
                verify_file(directory, entry)
    except CorruptCheckpointError as error:
        return str(error)
    return ""
