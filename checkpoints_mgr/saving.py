"""One save at a time, by all ranks together: agree, stage, write, vote, commit. The collectives are all here, driven
from the calling thread in the same order on every rank; the writer threads make none."""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from checkpoints_mgr import storage
from checkpoints_mgr.balance import shares
from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.digests import document_digest
from checkpoints_mgr.errors import CheckpointError
from checkpoints_mgr.layout import step_name, tmp_name
from checkpoints_mgr.owner import own_tag
from checkpoints_mgr.policy import Retention
from checkpoints_mgr.staging import Arena
from checkpoints_mgr.state import (
    JSON,
    Range,
    SaveResult,
    State,
    TensorSpec,
    check_json,
    check_state,
    shard_parts,
    shard_specs,
    whole_parts,
    whole_specs,
)
from checkpoints_mgr.sweeping import expired_steps, retire, sweep
from checkpoints_mgr.votes import Job, on_root, results_of, together
from checkpoints_mgr.writing import Attempt, Row, commit, discard, merge, write_share

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 1.0  # then the ranks look whether one of them is late


@dataclass
class Pending:
    """A save whose files are being written. specs: of all tensors; facts: progress, record and metrics."""

    attempt: Attempt
    specs: list[TensorSpec]
    facts: dict[str, dict[str, JSON]]
    job: Job
    background: bool
    started_s: float
    stage_seconds: float
    stall_seconds: float = 0.0


class Saver:
    """begin, then poll or wait until the outcome: every method is called by all ranks, and its outcome, a result or
    the same CheckpointError, is that of all."""

    def __init__(self, root: Path, comm: Communicator, retention: Retention, timeout_s: float) -> None:
        self._root, self._comm, self._retention, self._timeout_s = root, comm, retention, timeout_s
        self._arena = Arena()
        self._job: Job | None = None  # the last, which may still hold the arena after a timeout
        self._sweeper: Job | None = None
        self.pending: Pending | None = None

    def begin(self, step: int, state: State, metrics: dict[str, float], *, background: bool) -> None:
        """Returns when `state` may change: at once after a copy if in the background, otherwise when all is written."""
        started_s = time.perf_counter()
        comm = self._comm
        # Names and messages follow rank 0's step until all have shown that theirs is the same.
        proposal = (step, secrets.token_hex(16), own_tag()) if comm.rank == 0 else None
        agreed_step, save_id, owner = comm.broadcast_object(proposal)
        tmp = self._root / tmp_name(agreed_step, save_id, owner)
        attempt = Attempt(self._root, agreed_step, save_id, tmp, self._root / step_name(agreed_step))
        what = f"cannot save step {agreed_step}"

        def start() -> None:
            index = self._agree(what, step, state, metrics)
            on_root(comm, what, lambda: self._prepare(attempt))
            together(comm, what, lambda: self._start_writing(attempt, state, metrics, index, background, started_s))

        self._or_discard(attempt, start)

    def poll(self) -> SaveResult | None:
        """The result as soon as all ranks have written theirs and rank 0 has committed; None before."""
        entered_s = time.perf_counter()
        pending = self.pending
        if pending is None:
            return None
        late = self._comm.rank == 0 and entered_s - pending.started_s > self._timeout_s
        votes = self._comm.allgather_object([pending.job.ended.is_set(), late])
        waiting = [str(rank) for rank, (done, _) in enumerate(votes) if not done]
        if waiting and not votes[0][1]:
            pending.stall_seconds += time.perf_counter() - entered_s
            return None
        self.pending = None
        what = f"cannot save step {pending.attempt.step}"

        def conclude() -> SaveResult:
            if waiting:
                raise CheckpointError(f"{what}: rank {', '.join(waiting)} did not write within {self._timeout_s:g} s")
            return self._conclude(what, pending, entered_s)

        return self._or_discard(pending.attempt, conclude)

    def wait(self) -> SaveResult | None:
        """The result of the save that is pending; None when none is."""
        result = None
        while self.pending is not None:
            entered_s = time.perf_counter()
            self.pending.job.ended.wait(WAIT_S)
            self.pending.stall_seconds += time.perf_counter() - entered_s
            result = self.poll()
        return result

    def _agree(self, what: str, step: int, state: State, metrics: dict[str, float]) -> list[list[Range]]:
        """Who writes which whole tensors, after all ranks have shown that they save the same step and table."""

        def check() -> tuple[int, str, int]:
            if step < 0:
                raise CheckpointError(f"step is {step}, expected 0 or more")
            if self._job is not None and not self._job.ended.is_set():
                raise CheckpointError("the writer of an earlier save is still stuck")
            check_state(state)
            check_json("metrics", metrics)
            table = [
                [(spec.name, spec.dtype, spec.shape) for spec in specs]
                for specs in (whole_specs(state), shard_specs(state))
            ]
            return step, document_digest(table), sum(part.size_bytes for part, _ in shard_parts(state))

        votes = together(self._comm, what, check)
        for rank, (its_step, table, _) in enumerate(votes):
            if [its_step, table] != list(votes[0][:2]):
                raise CheckpointError(
                    f"{what}: rank {rank} saves step {its_step} with tensors {table}, "
                    f"rank 0 saves step {votes[0][0]} with tensors {votes[0][1]}"
                )
        return shares(whole_specs(state), [load_bytes for _, _, load_bytes in votes])

    def _prepare(self, attempt: Attempt) -> None:
        """Rank 0, before the others write: the save's own directory, and what dead saves left removed."""
        storage.make_root(self._root)
        if storage.is_occupied(attempt.target):
            raise CheckpointError(f"{attempt.target} exists already; move it away or continue from it")
        storage.make_dir(attempt.tmp)
        if self._sweeper is not None:
            self._sweeper.ended.wait()
        sweep(self._root, attempt.tmp)

    def _start_writing(
        self,
        attempt: Attempt,
        state: State,
        metrics: dict[str, float],
        index: list[list[Range]],
        background: bool,
        started_s: float,
    ) -> None:
        rank, world_size = self._comm.rank, self._comm.world_size
        stage_started_s = time.perf_counter()
        parts = whole_parts(state, index[rank]) + shard_parts(state)
        if background:
            parts = self._arena.stage(parts)
        stage_seconds = time.perf_counter() - stage_started_s

        def write() -> tuple[list[Row], float]:
            write_started_s = time.perf_counter()
            rows = write_share(attempt.tmp, parts, index, rank, world_size)
            return rows, time.perf_counter() - write_started_s

        self._job = Job(write, background, f"checkpoint-writer-{rank}")
        facts = {"progress": state.progress, "record": state.record, "metrics": metrics}
        specs = sorted([*whole_specs(state), *shard_specs(state)], key=lambda spec: spec.name)
        self.pending = Pending(attempt, specs, facts, self._job, background, started_s, stage_seconds)
        self.pending.stall_seconds = time.perf_counter() - started_s

    def _conclude(self, what: str, pending: Pending, entered_s: float) -> SaveResult:
        comm, attempt = self._comm, pending.attempt
        own = [pending.stage_seconds, pending.stall_seconds + time.perf_counter() - entered_s]
        gathered = comm.allgather_object([pending.job.vote, own])
        results = results_of(what, [vote for vote, _ in gathered])
        rows = [rank_rows for rank_rows, _ in results]
        stage_seconds, stall_seconds = (max(values) for values in zip(*(times for _, times in gathered), strict=True))

        def finish() -> list[float]:
            commit_started_s = time.perf_counter()
            size_bytes = commit(attempt, merge(attempt, pending.specs, rows, pending.facts))
            ended_s = time.perf_counter()
            return [size_bytes, ended_s - pending.started_s, ended_s - commit_started_s]

        size_bytes, seconds, commit_seconds = on_root(comm, what, finish)
        if comm.rank == 0:
            self._retain(attempt, pending.background)
        return SaveResult(
            step=attempt.step,
            path=attempt.target,
            size_bytes=int(size_bytes),
            seconds=seconds,
            stall_seconds=stall_seconds + commit_seconds,
            stage_seconds=stage_seconds,
            write_seconds=max(write_seconds for _, write_seconds in results),
            commit_seconds=commit_seconds,
        )

    def _retain(self, attempt: Attempt, background: bool) -> None:
        """Rank 0, after a commit, never the step just saved. Renaming is quick; what it frees may take long."""
        try:
            expired = [step for step in expired_steps(self._root, self._retention) if step != attempt.step]
        except OSError as error:
            logger.warning("cannot list %s: %s", self._root, error)
            return
        if trash := retire(self._root, expired, attempt.save_id):
            self._sweeper = Job(lambda: discard(*trash), background, "checkpoint-sweeper")

    def _or_discard(self, attempt: Attempt, action: Callable[[], T]) -> T:
        """Run it; when it fails, on all ranks alike, nobody goes on while the attempt is still on disk."""
        try:
            return action()
        except CheckpointError:
            self.pending = None
            if self._comm.rank == 0:
                discard(attempt.tmp)
            self._comm.barrier()
            raise
