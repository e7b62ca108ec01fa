"""Runs one save at a time, by all ranks together: agree, stage, write, vote, commit.

All collectives are in this module. The calling thread makes them in the same order on every rank. The writer threads
make none.
"""

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from checkpoints_mgr.alike import check_alike
from checkpoints_mgr.communicator import Communicator
from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.digests import document_digest
from checkpoints_mgr.disk.owner import own_tag
from checkpoints_mgr.disk.reading import quarantine
from checkpoints_mgr.disk.verified import Sound, Unsound, judge, remember
from checkpoints_mgr.errors import CheckpointError, CheckpointFaultError
from checkpoints_mgr.nodes import Nodes
from checkpoints_mgr.policy import Retention
from checkpoints_mgr.save.balance import shares
from checkpoints_mgr.save.staging import Arena
from checkpoints_mgr.save.sweeping import given_up, retire, sweep
from checkpoints_mgr.save.writing import Attempt, Row, commit, discard, merge, save_id_of, write_share
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
from checkpoints_mgr.votes import BackgroundTask, Vote, results_of, together

logger = logging.getLogger(__name__)

T = TypeVar("T")

WAIT_S = 1.0  # after it the ranks check whether one of them is late
QUIET_SHARE = 0.75  # of the polls that the last save took to write: the next save holds no vote before


@dataclass
class Pending:
    """Holds a save whose files are being written, or that is being committed.

    whole: the replicated tensors.
    specs: all tensors.
    facts: progress, record and metrics.
    """

    attempt: Attempt
    whole: list[TensorSpec]
    specs: list[TensorSpec]
    facts: dict[str, dict[str, JSON]]
    task: BackgroundTask
    background: bool
    started_s: float
    stage_s: float
    stall_s: float = 0.0
    polls: int = 0
    written: list[tuple[list[Row], float]] | None = None  # (rows, seconds) by rank, once all have written


class Saver:
    """Saves steps: call `begin`, then `poll` or `wait` until the outcome.

    Every method is called by all ranks, and returns the same or raises the same CheckpointError on all.
    """

    def __init__(self, root: Path, comm: Communicator, retention: Retention, timeout_s: float, node: str) -> None:
        self._root, self._comm, self._retention, self._timeout_s = root, comm, retention, timeout_s
        self._node = node
        self._arena = Arena()
        self._task: BackgroundTask | None = None  # the last one, which may still use the arena after a timeout
        self._sweeper: BackgroundTask | None = None
        self._reported: list[Unsound] = []
        self._quiet_polls = 0  # the same on all ranks, as is the number of a save's polls
        self.pending: Pending | None = None

    def begin(self, step: int, state: State, metrics: dict[str, float], *, background: bool) -> None:
        """Start a save, and return when `state` may change: in the background after a copy, else after the write."""
        started_s = time.perf_counter()
        comm = self._comm
        # Use rank 0's step in paths and messages until the vote has shown that all ranks save the same step.
        agreed_step, save_id = comm.broadcast_object((step, secrets.token_hex(16)) if comm.rank == 0 else None)
        what = f"cannot save step {agreed_step}"
        votes = self._agree(what, step, state, metrics)
        nodes = Nodes(tuple(vote["node"] for vote in votes))
        owner = votes[nodes.leader(self._node)]["owner"]
        attempt = Attempt(self._root, agreed_step, save_id, owner, nodes, self._node)
        index: list[list[Range]] = [[] for _ in votes]
        for node in sorted(set(nodes.of_rank)):
            ranks = nodes.ranks(node)
            loads_bytes = [votes[rank]["load_bytes"] for rank in ranks]
            for rank, share in zip(ranks, shares(whole_specs(state), loads_bytes), strict=True):
                index[rank] = share

        def start() -> None:
            together(comm, what, lambda: self._prepare(attempt) if nodes.leads(comm.rank) else None)
            together(comm, what, lambda: self._start_writing(attempt, state, metrics, index, background, started_s))

        self._or_discard(attempt, start)

    def poll(self) -> SaveResult | None:
        """Return the result as soon as all ranks have written their files and the leaders have committed; else None.

        A vote waits for the last rank, and longer while writer threads occupy the cores. So no vote is held before the
        files can be expected.
        """
        if self.pending is None:
            return None
        self.pending.polls += 1
        return self._vote(self.pending) if self.pending.polls > self._quiet_polls else None

    def _vote(self, pending: Pending) -> SaveResult | None:
        """Do as `poll`, without waiting for the quiet polls to pass."""
        entered_s = time.perf_counter()
        writing = pending.written is None
        # A commit that hangs has no timeout: no rank could know whether it will still take effect.
        late = writing and self._comm.rank == 0 and entered_s - pending.started_s > self._timeout_s
        votes = self._comm.allgather_object([pending.task.ended.is_set(), late])
        waiting = [str(rank) for rank, (done, _) in enumerate(votes) if not done]
        if waiting and not votes[0][1]:
            pending.stall_s += time.perf_counter() - entered_s
            return None
        what = f"cannot save step {pending.attempt.step}"

        def proceed() -> SaveResult | None:
            if waiting:
                raise CheckpointFaultError(
                    f"{what}: rank {', '.join(waiting)} did not write within {self._timeout_s:g} s"
                )
            if not writing:
                return self._conclude(what, pending, entered_s)
            self._start_commit(what, pending)
            if pending.polls:
                self._quiet_polls = int(QUIET_SHARE * (pending.polls - 1))
            return None

        result = self._or_discard(pending.attempt, proceed)
        pending.stall_s += time.perf_counter() - entered_s
        return result if pending.background or not writing else self._vote(pending)

    def wait(self) -> SaveResult | None:
        """Wait for the pending save and return its result; None when none is pending."""
        result = None
        while self.pending is not None:
            entered_s = time.perf_counter()
            self.pending.task.ended.wait(WAIT_S)
            self.pending.stall_s += time.perf_counter() - entered_s
            result = self._vote(self.pending)
        return result

    def _agree(self, what: str, step: int, state: State, metrics: dict[str, float]) -> list[Vote]:
        """Return the votes of all ranks, after checking that they save the same step and the same tensors."""

        def check() -> Vote:
            if step < 0:
                raise CheckpointError(f"step is {step}, expected 0 or more")
            if self._task is not None and not self._task.ended.is_set():
                raise CheckpointFaultError("the writer of an earlier save is still stuck")
            check_state(state)
            check_json("metrics", metrics)
            table = [
                [(spec.name, spec.dtype, spec.shape) for spec in specs]
                for specs in (whole_specs(state), shard_specs(state))
            ]
            load_bytes = sum(part.size_bytes for part, _ in shard_parts(state))
            saves = f"step {step} with tensors {document_digest(table)}"
            return {"saves": saves, "load_bytes": load_bytes, "node": self._node, "owner": own_tag()}

        votes = together(self._comm, what, check)
        for rank, vote in enumerate(votes):
            if vote["saves"] != votes[0]["saves"]:
                raise CheckpointError(f"{what}: rank {rank} saves {vote['saves']}, rank 0 saves {votes[0]['saves']}")
        check_alike(self._comm, what, state.whole)
        return votes

    def _prepare(self, attempt: Attempt) -> None:
        """Make the save's directory and remove the leftovers of dead saves; the leader does so before others write."""
        storage.make_root(self._root)
        if self._node and storage.is_occupied(attempt.target):
            # A restore has skipped this step, since other nodes lack their part of it.
            quarantine(self._root, attempt.target, "the same step is saved again", "superseded")
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
        rank = self._comm.rank
        stage_started_s = time.perf_counter()
        if background:
            parts = self._arena.stage(state, index[rank])
        else:
            parts = whole_parts(state, index[rank]) + shard_parts(state)
        stage_s = time.perf_counter() - stage_started_s

        def write() -> tuple[list[Row], float]:
            write_started_s = time.perf_counter()
            rows = write_share(attempt, parts, index, rank)
            return rows, time.perf_counter() - write_started_s

        self._task = BackgroundTask(write, background, f"checkpoint-writer-{rank}")
        facts = {"progress": state.progress, "record": state.record, "metrics": metrics}
        whole = whole_specs(state)
        specs = sorted([*whole, *shard_specs(state)], key=lambda spec: spec.name)
        self.pending = Pending(attempt, whole, specs, facts, self._task, background, started_s, stage_s)
        self.pending.stall_s = time.perf_counter() - started_s

    def _start_commit(self, what: str, pending: Pending) -> None:
        """Let the leaders commit. All ranks have written, or one has failed."""
        comm, attempt = self._comm, pending.attempt
        pending.written = results_of(what, comm.allgather_object(pending.task.vote))
        rows = [rank_rows for rank_rows, _ in pending.written]
        whole = {spec.name for spec in pending.whole}

        def finish() -> tuple[int, float, list[Sound]]:
            started_s = time.perf_counter()
            manifest = merge(attempt, pending.specs, whole, rows, pending.facts)
            size_bytes = commit(attempt, manifest)
            commit_s = time.perf_counter() - started_s
            remember(self._root, attempt.step, manifest)
            return size_bytes, commit_s, self._sound_steps()

        def follow() -> tuple[int, float, list[Sound]]:
            return 0, 0.0, []

        leads = attempt.nodes.leads(comm.rank)
        pending.task = BackgroundTask(finish if leads else follow, leads and pending.background, "checkpoint-committer")

    def _sound_steps(self) -> list[Sound]:
        """Return this node's sound steps. Others are neither counted nor removed, and are logged once."""
        try:
            judged = judge(self._root)
        except OSError as error:
            logger.warning("no old checkpoint is removed, because %s cannot be listed: %s", self._root, error)
            return []
        for each in judged.unsound:
            if each not in self._reported:
                logger.error("%s does not count as a checkpoint and stays: %s", self._root / each.name, each.fault)
        self._reported = judged.unsound
        return judged.sound

    def _conclude(self, what: str, pending: Pending, entered_s: float) -> SaveResult:
        """Return the result. All leaders have committed, or one has failed."""
        comm, attempt = self._comm, pending.attempt
        now_s = time.perf_counter()
        own = [pending.stage_s, pending.stall_s + now_s - entered_s, now_s - pending.started_s]
        votes = comm.allgather_object([pending.task.vote, own])
        outcomes = results_of(what, [vote for vote, _ in votes])
        stage_s, stall_s, total_s = map(max, zip(*(times for _, times in votes), strict=True))
        self.pending = None
        if attempt.nodes.leads(comm.rank):
            self._retain(attempt, [sound for _, _, sound in outcomes], pending.background)
        return SaveResult(
            step=attempt.step,
            path=attempt.target,
            size_bytes=sum(size_bytes for size_bytes, _, _ in outcomes),
            total_s=total_s,
            stall_s=stall_s,
            stage_s=stage_s,
            write_s=max(write_s for _, write_s in pending.written or []),
            commit_s=max(commit_s for _, commit_s, _ in outcomes),
        )

    def _retain(self, attempt: Attempt, sound_of_rank: Sequence[Sequence[Any]], background: bool) -> None:
        """Remove expired steps, never the step just saved; the leader does so after a commit.

        The rename is quick, but freeing the space may take long, so it runs as a job.
        """
        sound_of_node = {
            node: [Sound(*row) for row in sound_of_rank[attempt.nodes.leader(node)]] for node in attempt.nodes.of_rank
        }
        held = {each.step for each in sound_of_node[attempt.node]} - {attempt.step}
        expired = [step for step in given_up(self._retention, sound_of_node) if step in held]
        if trash := retire(self._root, expired, attempt.save_id):
            self._sweeper = BackgroundTask(lambda: discard(*trash), background, "checkpoint-sweeper")

    def _or_discard(self, attempt: Attempt, action: Callable[[], T]) -> T:
        """Run the action. It fails on all ranks alike; then no rank continues while the attempt is still on disk."""
        try:
            return action()
        except CheckpointError:
            self.pending = None
            if attempt.nodes.leads(self._comm.rank):
                discard(attempt.tmp)
                if self._node and save_id_of(attempt.target) == attempt.save_id:
                    # Another node's leader could not commit, so this node's part will never be complete.
                    discard(*retire(self._root, [attempt.step], attempt.save_id))
            self._comm.barrier()
            raise
