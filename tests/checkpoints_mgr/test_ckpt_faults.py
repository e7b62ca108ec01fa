"""Kills, failing ranks and flipped bits: what is readable afterwards is always a whole step."""

import errno
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, storage

CHANGING = ("make_root", "make_dir", "write_new", "rename", "sync_dir", "remove_tree")
ASKING = ("list_names", "is_occupied", "file_size", "read_bytes")
FILE_CLASSES = ("MANIFEST.json", "model-0*", "ema-0*", "adam_m-0*", "adam_v-0*", "model.safetensors.index.json")


class Killed(BaseException):
    """Stands for kill -9: no `except Exception` may run after it."""


def break_storage(monkeypatch, function, at_call, error, *, after=False, only=lambda path: True):
    """Make the at_call-th matching call (0 is the first) of a storage function raise; returns the call counter."""
    real = getattr(storage, function)
    calls = []

    def broken(path, *arguments):
        if not only(path):
            return real(path, *arguments)
        calls.append(path)
        if len(calls) - 1 != at_call:
            return real(path, *arguments)
        if after:
            real(path, *arguments)
        elif function == "write_new":
            path.write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(storage, function, broken)
    return calls


def save_with(monkeypatch, root, state, function, at_call, error, after=False):
    """One save of step 30 with a fault; returns (whether the fault was reached, what the save raised)."""
    with monkeypatch.context() as patch:
        calls = break_storage(patch, function, at_call, error, after=after)
        try:
            CheckpointManager(root).save(30, state)
        except (Killed, CheckpointError) as raised:
            return True, raised
    return len(calls) > at_call, None


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("function", CHANGING)
def test_a_save_killed_at_any_stage_leaves_the_old_or_the_new_step(
    tmp_path, make_state, assert_same, names, monkeypatch, function, after
):
    """Each call of each file operation in turn is the one before (or after) which the process dies."""
    for at_call in range(100):
        root = tmp_path / f"kill_{at_call}"
        CheckpointManager(root).save(20, make_state(2))
        (root / ".tmp-step_0000000030-dead").mkdir()
        reached, raised = save_with(monkeypatch, root, make_state(3), function, at_call, Killed(), after)
        if not reached:
            break
        assert isinstance(raised, Killed)
        restored = CheckpointManager(root).restore()
        assert restored.step in (20, 30)
        assert_same(restored.state, make_state(restored.step // 10))
        assert (root / "step_0000000030").exists() == (restored.step == 30)
        assert "quarantine" not in names(root)
        CheckpointManager(root).save(40, make_state(4))
        kept = "step_0000000030" if restored.step == 30 else "step_0000000020"
        assert names(root) == [kept, "step_0000000040"]
    assert at_call >= 1, f"{function} was never called"


@pytest.mark.parametrize("function", CHANGING + ASKING)
def test_an_io_error_at_any_stage_is_a_clean_failure_or_harmless(
    tmp_path, make_state, assert_same, names, monkeypatch, function
):
    for at_call in range(100):
        root = tmp_path / f"error_{at_call}"
        CheckpointManager(root).save(20, make_state(2))
        fault = OSError(errno.EIO, "Input/output error", "some file")
        reached, raised = save_with(monkeypatch, root, make_state(3), function, at_call, fault)
        if not reached:
            break
        assert not [name for name in names(root) if name.startswith(".tmp-")]
        restored = CheckpointManager(root).restore()
        assert_same(restored.state, make_state(restored.step // 10))
        if raised is None:
            assert restored.step == 30
        else:
            assert str(raised).startswith("cannot save step 30: ")
            assert "Input/output error" in str(raised)
            in_doubt = "may not outlive a power cut" in str(raised)
            assert restored.step == (30 if in_doubt else 20)


def test_a_rename_that_happened_but_was_reported_as_failed_is_a_commit(tmp_path, make_state, monkeypatch):
    """What an NFS client sees when the answer to its first rename was lost."""
    lost_answer = FileNotFoundError(errno.ENOENT, "No such file or directory")
    break_storage(monkeypatch, "rename", 1, lost_answer, after=True)
    result = CheckpointManager(tmp_path).save(30, make_state(3))
    assert result.step == 30
    assert CheckpointManager(tmp_path).latest() == 30


@pytest.mark.parametrize("failing_rank", [0, 1, 2])
def test_one_rank_that_cannot_write_fails_all_alike(
    tmp_path, run_ranks, make_state, assert_same, names, monkeypatch, failing_rank
):
    run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(20, make_state(2)))
    full = OSError(errno.ENOSPC, "No space left on device", "disk")
    with monkeypatch.context() as patch:
        break_storage(patch, "write_new", 1, full, only=lambda path: f"-{failing_rank:05d}-of-" in path.name)
        errors = run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(30, make_state(3)))
    assert [type(error) for error in errors] == [CheckpointError] * 3
    expected = f"cannot save step 30: rank {failing_rank}: [Errno 28] No space left on device: 'disk'"
    assert {str(error) for error in errors} == {expected}
    assert names(tmp_path) == ["step_0000000020"]
    for result in run_ranks(3, lambda comm: CheckpointManager(tmp_path, comm).save(30, make_state(3))):
        assert result.step == 30


def test_an_unexpected_exception_fails_all_alike_and_is_logged(tmp_path, run_ranks, make_state, monkeypatch, caplog):
    break_storage(monkeypatch, "write_new", 0, ZeroDivisionError("a bug"), only=lambda path: "-00001-of-" in path.name)
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    assert {str(error) for error in errors} == {"cannot save step 1: rank 1: ZeroDivisionError: a bug"}
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("pattern", FILE_CLASSES)
def test_a_flipped_bit_sends_the_step_to_quarantine_and_falls_back(
    two_steps, run_ranks, make_state, assert_same, names, flip_bit, caplog, pattern, place
):
    victim = sorted((two_steps / "step_0000000020").glob(pattern))[-1]
    position = {"first": 0, "middle": victim.stat().st_size // 2, "last": -1}[place]
    flip_bit(victim, position)
    with caplog.at_level(logging.ERROR):
        results = run_ranks(2, lambda comm: CheckpointManager(two_steps, comm).restore())
    for result in results:
        assert result.step == 10
        assert_same(result.state, make_state(1))
    assert victim.name in caplog.text
    assert names(two_steps) == ["quarantine", "step_0000000010"]
    (moved,) = names(two_steps / "quarantine")
    assert moved.startswith("step_0000000020-corrupt-")
    assert victim.name in names(two_steps / "quarantine" / moved)


@pytest.mark.parametrize("pattern", FILE_CLASSES)
@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_missing_or_short_file_is_corrupt(two_steps, pattern, damage):
    victim = next(iter((two_steps / "step_0000000020").glob(pattern)))
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(victim.read_bytes()[:-1])
    manager = CheckpointManager(two_steps)
    assert manager.latest() == 10
    assert manager.restore().step == 10
    assert CheckpointManager(two_steps).latest() == 10


def test_every_step_corrupt_is_an_error_and_not_a_fresh_start(two_steps, run_ranks, flip_bit):
    for step in two_steps.glob("step_*"):
        flip_bit(step / "ema-00000-of-00002.safetensors", 5000)
    errors = run_ranks(2, lambda comm: CheckpointManager(two_steps, comm).restore())
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert str(errors[0]) == str(errors[1])
    assert "all that was tried is corrupt" in str(errors[0])
    with pytest.raises(CheckpointError, match="remove quarantine/ to begin anew"):
        CheckpointManager(two_steps).restore()  # the next start
    shutil.rmtree(two_steps / "quarantine")
    assert CheckpointManager(two_steps).restore() is None


def test_a_given_corrupt_step_does_not_fall_back(two_steps, flip_bit):
    flip_bit(two_steps / "step_0000000020" / "adam_v-00001-of-00002.safetensors", -1)
    with pytest.raises(CheckpointError, match="adam_v-00001-of-00002"):
        CheckpointManager(two_steps).restore(20)
    assert CheckpointManager(two_steps).latest() == 10


def test_a_transient_read_error_condemns_nothing(two_steps, run_ranks, names, monkeypatch):
    break_storage(monkeypatch, "Reader", 3, OSError(errno.EIO, "Input/output error"))
    errors = run_ranks(2, lambda comm: CheckpointManager(two_steps, comm).restore())
    assert {type(error) for error in errors} == {CheckpointError}
    assert len({str(error) for error in errors}) == 1
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


def test_a_rank_that_alone_reads_wrong_bytes_condemns_nothing(two_steps, run_ranks, names, monkeypatch):
    """Rank 0 reads the committed bytes, so the fault is the other host's: an error, no quarantine."""
    real = storage.Reader.read_into
    wrong_reads: list[Path] = []

    def flaky(reader, buffers, offset):
        count = real(reader, buffers, offset)
        if threading.current_thread().name == "rank_1":
            wrong_reads.append(reader.path)
            buffers[0][0] ^= 1
        return count

    monkeypatch.setattr(storage.Reader, "read_into", flaky)
    errors = run_ranks(2, lambda comm: CheckpointManager(two_steps, comm).restore())
    assert wrong_reads
    assert {type(error) for error in errors} == {CheckpointError}
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


def test_a_read_only_root_still_falls_back(two_steps, flip_bit, names, monkeypatch):
    flip_bit(two_steps / "step_0000000020" / "MANIFEST.json", 100)
    break_storage(monkeypatch, "make_root", 0, OSError(errno.EROFS, "Read-only file system"))
    assert CheckpointManager(two_steps).restore().step == 10
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


def test_everything_is_flushed_before_the_rename_that_commits(tmp_path, make_state, monkeypatch):
    """The order of the system calls themselves: data, directory, manifest, directory, commit, root."""
    root = tmp_path / "root"
    root.mkdir()
    events = []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor):
        events.append(("fsync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        real_fsync(descriptor)

    def rename(source, target):
        events.append(("rename", Path(target).name))
        return real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)
    CheckpointManager(root).save(1, make_state(1))
    data = ["adam_m", "adam_v", "ema", "model"]
    tmp = events[5][1]
    assert tmp.startswith(".tmp-step_0000000001-")
    assert events == [
        *(("fsync", f"{component}-00000-of-00001.safetensors") for component in data),
        ("fsync", "model.safetensors.index.json"),
        ("fsync", tmp),
        ("fsync", "MANIFEST.json.part"),
        ("rename", "MANIFEST.json"),
        ("fsync", tmp),
        ("rename", "step_0000000001"),
        ("fsync", "root"),
    ]
