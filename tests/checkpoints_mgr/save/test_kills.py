"""Real processes: killed with -9 or stopped at each file operation in turn, on the first and the last rank."""

import os
import shutil
import signal
import socket
import subprocess

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, Retention, State
from checkpoints_mgr.disk import storage
from support.checkpoints.failpoints import Fault
from support.checkpoints.process_ranks import end_of, start_ranks


def saver(root, make_state, sharded, spec, background):
    """One rank's work: a save of step 30 with a fault."""

    def work(comm):
        manager = CheckpointManager(root, comm, Retention(2))
        state = sharded(make_state(3), comm.rank, comm.world_size)
        storage.set_failpoint(Fault(spec, comm.rank))
        manager.start_save(30, state, background=background)
        manager.wait()

    return work


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_killed_at_any_operation_leaves_the_old_or_the_new_step(
    tmp_path, two_steps, make_state, sharded, assert_same, names, restore, rank, background
):
    outcomes = set()
    for number in range(300):
        root = tmp_path / "root"
        shutil.copytree(two_steps, root)
        codes = list(
            map(end_of, start_ranks(2, saver(root, make_state, sharded, f"*#{number}@rank{rank}=kill", background)))
        )
        if codes == [0, 0]:
            break
        assert codes[rank] == -signal.SIGKILL
        restored = restore(root)
        outcomes.add(restored.step)
        assert restored.step in (20, 30) and restored.quarantined == ()
        assert_same(restored.state, make_state(restored.step // 10))
        CheckpointManager(root).save(40, make_state(4))
        assert names(root) == [f"step_{restored.step:010d}", "step_0000000040"]  # and nothing of the dead save
        shutil.rmtree(root)
    assert number > (60 if rank == 0 else 15)
    assert outcomes == ({20, 30} if rank == 0 else {20})


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("operation", ["write#2", "fsync#0", "sync_dir#0"])
def test_a_stopped_rank_does_not_commit_when_it_goes_on(
    tmp_path, two_steps, make_state, sharded, names, restore, operation, rank
):
    """SIGSTOP: the other gives up; what the stopped one does later must not make a step that the other disowned."""
    work = saver(two_steps, make_state, sharded, f"{operation}@rank{rank}=stop", False)
    line = socket.socketpair()
    pids = start_ranks(2, work, [line])
    stopped, other = pids[rank], pids[1 - rank]
    assert os.WIFSTOPPED(os.waitpid(stopped, os.WUNTRACED)[1])
    line[1 - rank].shutdown(socket.SHUT_RD)  # it hears no more; what it has said can still be read
    for end in line:
        end.close()
    assert end_of(other) == 1
    assert restore(two_steps).step == 20
    os.kill(stopped, signal.SIGCONT)
    assert end_of(stopped) == 1
    assert restore(two_steps).step == 20
    CheckpointManager(two_steps).save(30, make_state(3))
    assert names(two_steps) == ["step_0000000020", "step_0000000030"]


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 300 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    try:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(place)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"cannot mount a tmpfs: {error}")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_fails_the_save_and_harms_nothing(small_disk, names):
    state = State({"model/w": np.arange(100 * 256, dtype=np.float32)}, {})  # 100 KiB
    manager = CheckpointManager(small_disk, retention=Retention(5))
    manager.save(1, state)
    manager.save(2, state)
    for background in (False, True):
        with pytest.raises(CheckpointError, match="No space left on device"):
            manager.start_save(3, state, background=background)
            manager.wait()
        assert names(small_disk) == ["step_0000000001", "step_0000000002"]
    restored = State({"model/w": np.zeros(100 * 256, np.float32)}, {})
    assert manager.restore(restored).step == 2
    np.testing.assert_array_equal(restored.whole["model/w"], state.whole["model/w"])


def test_a_read_only_disk_restores_and_says_why_it_cannot_save(small_disk, make_state, restore, names):
    CheckpointManager(small_disk).save(1, make_state(1))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert restore(small_disk).step == 1
    with pytest.raises(CheckpointError, match="Read-only file system"):
        CheckpointManager(small_disk).save(2, make_state(2))
    assert names(small_disk) == ["step_0000000001"]
