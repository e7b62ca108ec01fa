"""Whose doing a failure is, equal on all ranks: what the user can mend has a remedy, all else is a fault."""

import ctypes
import errno
import os
import resource

import numpy as np
import pytest

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager, State
from checkpoints_mgr.disk import storage
from support.checkpoints.failpoints import Fault
from support.checkpoints.process_ranks import end_of, start_ranks


@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        ("ENOSPC", "make room there"),
        ("EDQUOT", "make room there"),
        ("EROFS", "give a directory that may be written to"),
        ("EACCES", "give a directory that may be written to"),
        ("EIO", None),
        ("ESTALE", None),
    ],
)
@pytest.mark.parametrize("operation", ["write#0@rank1", "rename#0", "sync_dir#2@rank0"])
def test_a_failed_save(tmp_path, run_ranks, make_state, failpoint, operation, number, remedy):
    """By a writer, at the commit, and after it, where nothing is left to mend."""
    failpoint(Fault(f"{operation}=raise:{number}"))
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    assert len({(type(error), str(error)) for error in errors}) == 1
    mended = remedy is not None and "sync_dir" not in operation
    assert type(errors[0]) is (CheckpointError if mended else CheckpointFaultError)
    assert (remedy is not None and remedy in str(errors[0])) == mended


def test_a_bug_on_one_rank_is_a_fault_on_all(tmp_path, run_ranks, make_state, failpoint):
    def bug(operation, path, detail):
        if operation == "create" and "-00001-of-" in path.name:
            raise ZeroDivisionError

    failpoint(bug)
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    assert {type(error) for error in errors} == {CheckpointFaultError}


def test_a_limit_on_the_size_of_files(tmp_path, run_ranks, names):
    """A real one, as a shell's ulimit sets it, in a process of its own."""
    state = State({"model/w": np.zeros(1 << 18, np.float32)}, {})

    def work(comm):
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 18, resource.RLIM_INFINITY))
        with pytest.raises(CheckpointError, match=r"File too large: .*; make room there") as caught:
            CheckpointManager(tmp_path, comm).save(1, state)
        assert type(caught.value) is CheckpointError

    assert list(map(end_of, start_ranks(1, work))) == [0]
    assert names(tmp_path) == []


def test_a_signal_while_space_is_taken_fails_nothing(tmp_path, make_state, assert_same, restore, monkeypatch):
    """fallocate(2) may return EINTR; here each first call does."""
    answers = []

    class Interrupted:
        def fallocate(self, *arguments):
            answers.append(len(answers) % 2)
            ctypes.set_errno(errno.EINTR)
            return answers[-1] - 1

    monkeypatch.setattr(storage, "_libc", Interrupted())
    CheckpointManager(tmp_path).save(1, make_state(1))
    assert_same(restore(tmp_path).state, make_state(1))
    assert answers.count(0) == answers.count(1) > 0


def test_writes_that_the_system_cuts_short_are_continued(tmp_path, make_state, assert_same, restore, monkeypatch):
    """At any byte: within a buffer, at its end, and over several."""
    cut = []

    def short(descriptor, buffers):
        content = b"".join(buffers)
        cut.append(len(content) > 1000)
        return os.write(descriptor, content[:1000])

    monkeypatch.setattr(os, "writev", short)
    CheckpointManager(tmp_path).save(1, make_state(1))
    monkeypatch.undo()
    assert any(cut)
    assert_same(restore(tmp_path).state, make_state(1))
