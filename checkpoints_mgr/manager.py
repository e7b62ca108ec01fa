"""Saves and restores checkpoints by all ranks together."""

from pathlib import Path
from typing import Literal

from checkpoints_mgr.communicator import Communicator, SingleProcess
from checkpoints_mgr.policy import Retention
from checkpoints_mgr.restore.restoring import Restorer
from checkpoints_mgr.restore.restoring_nodes import NodeRestorer
from checkpoints_mgr.save.saving import Saver
from checkpoints_mgr.state import Restored, SaveResult, State

WRITE_TIMEOUT_S = 1800.0


class CheckpointManager:
    """Manages the checkpoints under one root.

    The root is on a file system that all ranks share. If each rank passes the name of its `node`, the root is on each
    node's local disks instead: a node keeps its ranks' shards and all replicated tensors. Such a step counts when all
    of its nodes have their part.

    Every method is collective: all ranks call it in the same order. It returns the same, or raises the same
    CheckpointError, on all of them. Background threads make no collectives: a save in the background progresses when
    the ranks call `poll`, `wait` or the next method.
    """

    def __init__(
        self,
        root: Path,
        comm: Communicator | None = None,
        retention: Retention | None = None,
        *,
        node: str = "",
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        group = comm if comm is not None else SingleProcess()
        self._saver = Saver(root, group, retention or Retention(), write_timeout_s, node)
        self._restorer = NodeRestorer(root, group, node) if node else Restorer(root, group)

    @property
    def pending_step(self) -> int | None:
        """The step of the save that is not committed yet, the same on all ranks; None when no save is pending."""
        pending = self._saver.pending
        return pending.attempt.step if pending is not None else None

    def save(self, step: int, state: State, metrics: dict[str, float] | None = None) -> SaveResult:
        """Commit the state as this step, or leave no trace of the attempt. On return the step is durable.

        Replicated tensors must be equal on all ranks. Each rank writes its share of them, and its part of sharded ones.
        Raises DriftError, the same on all ranks: when replicated tensors are not equal.
        Raises CheckpointError, the same on all ranks: when a rank failed, the ranks do not save the same, the step
        exists already, or a pending save failed.
        """
        self.start_save(step, state, metrics, background=False)
        result = self._saver.wait()
        assert result is not None  # noqa: S101 a save was begun
        return result

    def start_save(
        self, step: int, state: State, metrics: dict[str, float] | None = None, *, background: bool = True
    ) -> None:
        """Copy the state and write it in the background; `poll` or `wait` returns the outcome. Otherwise as `save`.

        One save runs at a time: this call waits for an earlier one.
        """
        self._saver.wait()
        self._saver.begin(step, state, metrics or {}, background=background)

    def poll(self) -> SaveResult | None:
        """Commit the pending save if all ranks have written it; call this at a step boundary.

        Returns the result, or None when there is nothing new.
        Raises CheckpointError: when the save failed, on all ranks, and left nothing.
        """
        return self._saver.poll()

    def wait(self) -> SaveResult | None:
        """Wait for the pending save and return its outcome, as `poll`; None when none is pending."""
        return self._saver.wait()

    def latest(self) -> int | None:
        """Return the newest step whose manifest and file sizes are right, as rank 0 sees it; None without one."""
        return self._restorer.latest()

    def restore(self, template: State, step: int | Literal["latest"] = "latest") -> Restored | None:
        """Fill the template's arrays from the newest step, or the given one; any number of ranks may have written it.

        Each rank reads what its template names and no more, and verifies every byte. After an error the content of
        the arrays is undefined. A step that is proven corrupt is moved to quarantine/; "latest" then falls back to the
        next older one.
        Returns None: when there never was a checkpoint.
        Raises CheckpointError, the same on all ranks: when the given step is missing or corrupt, every step is corrupt
        (also those of an earlier restore), a rank cannot read, or the step lacks a tensor of the template or has it in
        another shape or dtype.
        """
        return self._restorer.restore(template, step)
