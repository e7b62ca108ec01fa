"""Saving and restoring by all ranks together: the collectives, in the same order on every rank."""

import logging
import secrets
import time
from pathlib import Path
from typing import Literal

from checkpoints_mgr import storage
from checkpoints_mgr.communicator import Communicator, SingleProcess
from checkpoints_mgr.digests import document_digest
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.layout import QUARANTINE, TMP_PREFIX, step_name, steps_in
from checkpoints_mgr.manifest import Manifest, from_bytes, to_bytes
from checkpoints_mgr.reading import open_step, quarantine, read_state
from checkpoints_mgr.state import JSON, Restored, SaveResult, State, TensorSpec, check_progress, tensor_specs
from checkpoints_mgr.votes import on_root, together
from checkpoints_mgr.writing import commit, discard, merge, prepare, retain, write_share

logger = logging.getLogger(__name__)


class CheckpointManager:
    """Checkpoints under one root on a file system that all ranks share.

    save, restore and latest are collective: every rank calls them, in the same order. They return the same, or
    raise the same CheckpointError, on all ranks. One job at a time may save under a root.
    """

    def __init__(self, root: Path, comm: Communicator | None = None, *, keep_last: int = 2) -> None:
        if keep_last < 1:
            raise CheckpointError(f"keep_last is {keep_last}; at least 1 checkpoint must be kept")
        self._root = root
        self._comm: Communicator = comm if comm is not None else SingleProcess()
        self._keep_last = keep_last

    def save(self, step: int, state: State) -> SaveResult:
        """Commit the state as this step, or leave no trace of the attempt.

        The tensors must be equal on all ranks: each rank writes its share of them. On return the step is durable.
        CheckpointError, the same on all ranks: a rank failed, or the step exists already.
        """
        started_s = time.perf_counter()
        comm, own_step = self._comm, step
        # Names and messages follow rank 0's step until all have shown that theirs is the same.
        step, save_id = comm.broadcast_object((step, secrets.token_hex(16)) if comm.rank == 0 else None)
        what = f"cannot save step {step}"
        target = self._root / step_name(step)
        tmp = self._root / f"{TMP_PREFIX}{step_name(step)}-{save_id}"
        try:
            specs = self._agree(what, own_step, state)
            on_root(comm, what, lambda: prepare(self._root, target, tmp))

            def write() -> list[dict[str, JSON]]:
                return [written.to_row() for written in write_share(tmp, state, specs, comm.rank, comm.world_size)]

            votes = together(comm, what, write)

            def finish() -> tuple[int, float]:
                size_bytes = commit(self._root, tmp, target, merge(save_id, step, state, specs, votes))
                return size_bytes, time.perf_counter() - started_s

            size_bytes, seconds = on_root(comm, what, finish)
        except CheckpointError:
            if comm.rank == 0:
                discard(tmp)
            comm.barrier()  # nobody goes on while the failed attempt is still on disk
            raise
        if comm.rank == 0:
            retain(self._root, self._keep_last, step, save_id)
        return SaveResult(step, target, size_bytes, seconds)

    def latest(self) -> int | None:
        """The newest step whose manifest and file sizes are right, as rank 0 sees it; None when there is none."""
        return on_root(self._comm, f"cannot list {self._root}", self._newest_plausible)

    def restore(self, step: int | Literal["latest"] = "latest") -> Restored | None:
        """Read the newest step, or the given one, with every byte verified; any world size may have written it.

        A step that is proven corrupt is moved to quarantine/; "latest" then falls back to the next older one.
        None: there never was a checkpoint. CheckpointError, the same on all ranks: the given step is missing or
        corrupt, every step is corrupt (also those of an earlier restore), or a rank cannot read.
        """
        candidates = on_root(self._comm, f"cannot restore step {step}", lambda: self._candidates(step))
        faults = []
        for candidate in candidates:
            restored, fault = self._restore_step(candidate)
            if restored is not None:
                return restored
            faults.append(fault)
        if not faults:
            return None
        raise CheckpointError(
            f"no checkpoint to restore in {self._root}, all that was tried is corrupt: {'; '.join(faults)}"
        )

    def _agree(self, what: str, step: int, state: State) -> list[TensorSpec]:
        """The table of tensors, after all ranks have shown that they save the same step and the same table."""

        def check() -> tuple[int, str]:
            if step < 0:
                raise CheckpointError(f"step is {step}, expected 0 or more")
            check_progress(state.progress)
            return step, document_digest([(spec.name, spec.dtype, spec.shape) for spec in tensor_specs(state)])

        votes = together(self._comm, what, check)
        for rank, vote in enumerate(votes):
            if vote != votes[0]:
                raise CheckpointError(
                    f"{what}: rank {rank} saves step {vote[0]} with tensors {vote[1]}, "
                    f"rank 0 saves step {votes[0][0]} with tensors {votes[0][1]}"
                )
        return tensor_specs(state)

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
                # Beginning anew in silence would hide that work was lost.
                raise CheckpointError(
                    f"no checkpoint to restore in {self._root}, all are in {QUARANTINE}/ ({', '.join(quarantined)}); "
                    f"move a repaired one back, or remove {QUARANTINE}/ to begin anew"
                )
            return steps
        if step not in steps:
            known = ", ".join(map(str, steps)) or "none"
            raise CheckpointError(f"{self._root} has no such step; it has: {known}")
        return [step]

    def _restore_step(self, step: int) -> tuple[Restored | None, str]:
        """The step, or the fault for which rank 0 has put it into quarantine."""
        comm, what, directory = self._comm, f"cannot restore step {step}", self._root / step_name(step)
        text, fault = on_root(comm, what, lambda: _open(directory))
        if text:
            manifest = from_bytes(text.encode(), str(directory))
            states: list[State] = []
            faults = together(comm, what, lambda: _read(directory, manifest, states))
            if not any(faults):
                return Restored(step, states[0]), ""
            fault = faults[0]
            if not fault:
                # Rank 0 reads what was committed: the disk is right, and another host's view of it is not.
                rank, message = next((rank, message) for rank, message in enumerate(faults) if message)
                raise CheckpointError(f"{what}: rank {rank} reads other bytes than rank 0, check its host: {message}")
        if comm.rank == 0:
            quarantine(self._root, directory, fault)
        comm.barrier()
        return None, fault


def _open(directory: Path) -> tuple[str, str]:
    """The manifest's text for all ranks, or what is corrupt about the step."""
    try:
        return to_bytes(open_step(directory)).decode(), ""
    except CorruptCheckpointError as error:
        return "", str(error)


def _read(directory: Path, manifest: Manifest, states: list[State]) -> str:
    """Put the state into `states` (it stays on this rank; only the result is gathered), or say what is corrupt."""
    try:
        states.append(read_state(directory, manifest))
    except CorruptCheckpointError as error:
        return str(error)
    return ""
