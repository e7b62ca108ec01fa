"""Saves that go on while training does: what is stored, when it is committed, and that no failure is lost."""

import os
import threading
import time

import numpy as np
import psutil
import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, State
from support.checkpoints.failpoints import Fault

DEADLINE_S = 60.0


def polled(manager):
    """The outcome of the pending save, come by as a training loop would."""
    while (result := manager.poll()) is None:
        pass
    return result


def test_what_changes_after_the_call_is_not_stored(tmp_path, make_state, sharded, assert_same, restore, failpoint):
    state = sharded(make_state(1), 0, 1)
    expected, started, changed = make_state(1), threading.Event(), threading.Event()

    def hold(operation, path, detail):
        if operation == "create":
            started.set()
            assert changed.wait(DEADLINE_S)

    failpoint(hold)
    manager = CheckpointManager(tmp_path)
    manager.start_save(1, state)
    assert started.wait(DEADLINE_S)
    assert manager.pending_step == 1
    assert manager.poll() is None
    for array in [*state.whole.values(), *(shard.values for shard in state.shards.values())]:
        array[...] = 0
    changed.set()
    result = polled(manager)
    assert (result.step, manager.pending_step, manager.poll(), manager.wait()) == (1, None, None, None)
    assert_same(restore(tmp_path).state, expected)


def test_the_ranks_commit_together_when_the_slowest_has_written(tmp_path, run_ranks, make_state, sharded, failpoint):
    failpoint(Fault("fsync#0@rank1=delay:0.2"))

    def work(comm):
        manager = CheckpointManager(tmp_path, comm)
        manager.start_save(1, sharded(make_state(1), comm.rank, 3))
        exists_early = (tmp_path / "step_0000000001").exists()
        return exists_early, polled(manager)

    outcomes = run_ranks(3, work)
    assert len(set(outcomes)) == 1
    exists_early, result = outcomes[0]
    assert not exists_early
    assert result.write_seconds >= 0.2
    assert result.stage_seconds < result.write_seconds


def test_ranks_do_not_ask_each_other_before_the_files_can_be_expected(tmp_path, run_ranks, make_state, failpoint):
    """Each save is written at the tenth poll of rank 1, the slower one. The first asks at every poll, the next from
    the seventh on; who waits for the outcome, or finds it sooner, gets it."""
    due = threading.Event()

    def hold(operation, path, detail):
        if operation == "fsync" and threading.current_thread().name == "checkpoint-writer-1":
            assert due.wait(10)

    failpoint(hold)

    def work(comm):
        manager, votes, asked = CheckpointManager(tmp_path, comm), [], []
        gather = comm.allgather_object
        comm.allgather_object = lambda value: (asked.append(value), gather(value))[1]
        for step in (1, 2):
            manager.start_save(step, make_state(step))
            asked.clear()
            for _ in range(9):
                assert manager.poll() is None
            votes.append(len(asked))
            comm.barrier()
            due.set()
            assert manager._saver._job.ended.wait(10)
            assert polled(manager).step == step
            comm.barrier()
            due.clear()
        manager.start_save(3, make_state(3))
        assert manager.poll() is None
        due.set()
        return votes, manager.wait().step

    assert run_ranks(2, work) == [([9, 3], 3)] * 2


def test_writing_in_the_background_leaves_the_cores_to_training(tmp_path, make_state, failpoint):
    found = {}

    def note(operation, path, detail):
        if operation in ("fsync", "rename"):
            found[operation] = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    failpoint(note)
    manager, own = CheckpointManager(tmp_path), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    manager.start_save(1, make_state(1))
    manager.wait()
    assert found == {"fsync": own + 10, "rename": own + 10}
    manager.save(2, make_state(2))
    assert found == {"fsync": own, "rename": own}
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own


@pytest.mark.parametrize("call", ["poll", "wait", "save"])
def test_a_writers_error_surfaces_on_all_ranks_and_the_next_save_works(
    tmp_path, run_ranks, make_state, names, failpoint, call
):
    failpoint(Fault("fsync#0@rank1=raise:EIO"))

    def work(comm):
        manager = CheckpointManager(tmp_path, comm)
        manager.start_save(1, make_state(1))
        with pytest.raises(
            CheckpointError, match=r"cannot save step 1: rank 1: \[Errno 5\] Input/output error"
        ) as caught:
            {"poll": lambda: polled(manager), "wait": manager.wait, "save": lambda: manager.save(2, make_state(2))}[
                call
            ]()
        comm.barrier()
        left = names(tmp_path)
        comm.barrier()
        return str(caught.value), left, manager.save(3, make_state(3)).step

    outcomes = run_ranks(2, work)
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1:] == ([], 3)
    assert names(tmp_path) == ["step_0000000003"]


def test_a_save_waits_for_the_one_before(tmp_path, run_ranks, make_state, names, failpoint):
    failpoint(Fault("fsync#0@rank0=delay:0.2"))

    def work(comm):
        manager = CheckpointManager(tmp_path, comm)
        manager.start_save(1, make_state(1))
        manager.start_save(2, make_state(2))
        first_is_there = (tmp_path / "step_0000000001").exists()
        return first_is_there, manager.wait().step

    assert run_ranks(2, work) == [(True, 2)] * 2
    assert names(tmp_path) == ["step_0000000001", "step_0000000002"]


def test_a_writer_that_hangs_fails_the_save_on_all_ranks_and_never_commits(
    tmp_path, run_ranks, make_state, names, failpoint
):
    """As a rank does whose disk is stuck; when it comes to itself, its save stays failed."""
    awake = threading.Event()

    def hang(operation, path, detail):
        if operation == "fsync" and threading.current_thread().name == "checkpoint-writer-1" and not awake.is_set():
            awake.wait(DEADLINE_S)

    failpoint(hang)

    def work(comm):
        manager = CheckpointManager(tmp_path, comm, write_timeout_s=900)
        manager.start_save(1, make_state(1))
        if comm.rank == 0:
            assert manager._saver._job.ended.wait(DEADLINE_S)
        comm.barrier()
        assert manager.poll() is None
        manager._saver.pending.started_s -= 901  # as if they had passed
        with pytest.raises(CheckpointError, match=r"cannot save step 1: rank 1 did not write within 900 s"):
            polled(manager)
        with pytest.raises(CheckpointError, match="rank 1: the writer of an earlier save is still stuck"):
            manager.save(2, make_state(2))
        comm.barrier()
        awake.set()
        job = manager._saver._job
        assert job.ended.wait(DEADLINE_S)
        comm.barrier()
        return manager.save(3, make_state(3)).step

    assert run_ranks(2, work) == [3, 3]
    assert [name for name in names(tmp_path) if not name.startswith(".")] == ["step_0000000003"]


def test_200_saves_take_no_more_memory_descriptors_or_threads_than_20(tmp_path, names):
    threads = threading.active_count()
    process = psutil.Process()
    state = State({"model/w": np.zeros((64, 1024), np.float32)}, {})
    manager = CheckpointManager(tmp_path)
    counts = {}
    for step in range(200):
        state.whole["model/w"][...] = step
        manager.start_save(step, state)
        manager.wait()
        while threading.active_count() > threads:
            time.sleep(0.001)  # the removal of an older step
        if step in (20, 199):
            counts[step] = (process.num_fds(), threading.active_count())
            counts[f"rss {step}"] = process.memory_info().rss
    assert counts[199] == counts[20]
    assert counts["rss 199"] <= 1.02 * counts["rss 20"]
    assert names(tmp_path) == ["step_0000000198", "step_0000000199"]
