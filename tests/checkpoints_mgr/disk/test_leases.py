"""A step that someone reads is left alone by retention and prune, and goes afterwards; a dead reader holds nothing."""

import errno
import fcntl
import os
import shutil
import signal
import threading

import pytest

from checkpoints_mgr import CheckpointManager, Retention
from checkpoints_mgr.disk.reading import lease

OLDER, NEWEST = "step_0000000010", "step_0000000020"


def test_retention_passes_over_a_step_that_is_read(two_steps, make_state, names, caplog):
    with lease(two_steps / OLDER):
        CheckpointManager(two_steps, retention=Retention(1)).save(30, make_state(3))
        assert names(two_steps) == [OLDER, "step_0000000030"]
    assert f"{two_steps / OLDER} stays for now: it is being read" in caplog.text
    CheckpointManager(two_steps, retention=Retention(1)).save(40, make_state(4))
    assert names(two_steps) == ["step_0000000040"]


def test_on_nfs_too_a_step_that_is_read_stays(two_steps, make_state, names, monkeypatch):
    """There an exclusive lock is refused to a file that is open for reading alone: flock(2), "NFS details"."""
    real = fcntl.flock

    def of_nfs(descriptor, operation):
        writable = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if operation & fcntl.LOCK_EX and not writable:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    manager = CheckpointManager(two_steps, retention=Retention(1))
    with lease(two_steps / OLDER):
        manager.save(30, make_state(3))
        assert names(two_steps) == [OLDER, "step_0000000030"]
    manager.save(40, make_state(4))
    assert names(two_steps) == ["step_0000000040"]


def test_readers_share_a_step_and_prune_tells_what_it_removed(two_steps, vpred_ckpt, names):
    with lease(two_steps / OLDER), lease(two_steps / OLDER) as shared:
        assert shared
        assert vpred_ckpt("prune", two_steps, "--keep-last", "1", "--delete")[:2] == (0, "nothing to remove\n")
        assert names(two_steps) == [OLDER, NEWEST]
    code, out, _ = vpred_ckpt("prune", two_steps, "--keep-last", "1", "--delete")
    assert (code, out) == (0, f"removed {two_steps / OLDER}\n")
    assert names(two_steps) == [NEWEST]


@pytest.mark.parametrize("reader", ["restore", "consolidate", "verify", "diff"])
def test_a_writer_prunes_while_each_kind_of_reader_reads(
    two_steps, tmp_path, run_ranks, make_state, assert_same, restore, vpred_ckpt, names, failpoint, reader
):
    """When it reads data, another job saves, keeps one, and so gives up the step."""
    shutil.rmtree(two_steps / OLDER)
    once = threading.Lock()

    def prune(operation, path, detail):
        if operation != "read" or path.suffix != ".safetensors" or path.parent.name != NEWEST:
            return
        if once.acquire(blocking=False):
            other = threading.Thread(target=lambda: CheckpointManager(two_steps, retention=Retention(1)).save(30, own))
            other.start()
            other.join()
            saved.append(names(two_steps))

    own, saved = make_state(3), []
    failpoint(prune)
    if reader == "restore":
        restored = run_ranks(2, lambda comm: restore(two_steps, comm=comm))
        assert [each.step for each in restored] == [20, 20]
        assert_same(restored[1].state, make_state(2))
    else:
        others = {"consolidate": [tmp_path / "out"], "verify": [], "diff": [two_steps / NEWEST]}[reader]
        assert vpred_ckpt(reader, two_steps / NEWEST, *others)[0] == 0
    assert saved == [[NEWEST, "step_0000000030"]]
    CheckpointManager(two_steps, retention=Retention(1)).save(40, own)
    assert names(two_steps) == ["step_0000000040"]


def test_a_killed_reader_holds_nothing(two_steps, make_state, names):
    ready, told = os.pipe()
    pid = os.fork()
    if pid == 0:
        with lease(two_steps / OLDER):
            os.write(told, b"x")
            signal.pause()
    os.read(ready, 1)
    os.close(ready)
    os.close(told)
    manager = CheckpointManager(two_steps, retention=Retention(1))
    manager.save(30, make_state(3))
    assert names(two_steps) == [OLDER, "step_0000000030"]
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    manager.save(40, make_state(4))
    assert names(two_steps) == ["step_0000000040"]
