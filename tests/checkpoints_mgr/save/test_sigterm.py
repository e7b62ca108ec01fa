"""SIGTERM at each operation of a save, on the first and the last rank: it goes on to the end, and one more is saved."""

import os
import shutil
import signal
import time

import pytest

from checkpoints_mgr import CheckpointManager, Retention
from checkpoints_mgr.disk import storage
from support.checkpoints.failpoints import Fault
from support.checkpoints.process_ranks import end_of, start_ranks

LAST = 60


def trainer(root, make_state, sharded, spec):
    """One rank that saves in the background after each step, until some rank is told to stop; then once more."""

    def work(comm):
        received = []
        signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
        manager = CheckpointManager(root, comm, Retention(9))
        storage.set_failpoint(Fault(spec, comm.rank))
        for step in range(30, LAST + 1, 10):
            manager.poll()
            stopping = any(comm.allgather_object(bool(received)))
            manager.start_save(step, sharded(make_state(step // 10), comm.rank, comm.world_size))
            if stopping:
                manager.wait()
                return
        manager.wait()
        raise AssertionError("the signal was lost")

    return work


@pytest.mark.parametrize("rank", [0, 1])
def test_a_stop_in_each_phase_of_a_save_ends_with_a_verified_step(
    tmp_path, two_steps, make_state, sharded, assert_same, names, restore, rank
):
    stopped_at = set()
    # A save of rank 0 has about 60 operations, of the other 20: so these are all phases of the first one, and more.
    for number in range(72 if rank == 0 else 24):
        root = tmp_path / "root"
        shutil.copytree(two_steps, root)
        work = trainer(root, make_state, sharded, f"*#{number}@rank{rank}=term")
        assert list(map(end_of, start_ranks(2, work))) == [0, 0]
        restored = restore(root)
        stopped_at.add(restored.step)
        assert restored.quarantined == ()
        assert_same(restored.state, make_state(restored.step // 10))
        steps = range(10, restored.step + 1, 10)  # the one that was pending was not lost
        assert names(root) == [f"step_{step:010d}" for step in steps]
        shutil.rmtree(root)
    assert stopped_at <= {40, 50, LAST}
    assert 40 in stopped_at


def test_a_grace_that_is_shorter_than_the_write_leaves_the_old_step(tmp_path, two_steps, make_state, sharded, restore):
    """Twice SIGTERM while a disk hangs, then SIGKILL, as a launcher does that has waited long enough."""
    work = trainer(two_steps, make_state, sharded, "write#2@rank1=delay:60")
    pids = start_ranks(2, work)
    deadline_s = time.monotonic() + 60
    while not list(two_steps.glob(".tmp-*/model-*")):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
        time.sleep(0.05)
        for pid in pids:
            os.kill(pid, number)
    assert [end_of(pid) for pid in pids] == [-signal.SIGKILL] * 2
    assert restore(two_steps).step == 20
    CheckpointManager(two_steps).save(30, make_state(3))
    assert restore(two_steps).step == 30
