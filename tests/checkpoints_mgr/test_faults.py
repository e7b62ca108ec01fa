"""Kills, failing ranks and flipped bits: what is readable afterwards is always a whole step."""

import errno
import logging
import os
import shutil
import threading
from pathlib import Path

import pytest

from checkpoints_mgr import CheckpointError, CheckpointFaultError, CheckpointManager
from checkpoints_mgr.disk import storage
from checkpoints_mgr.errors import CorruptCheckpointError
from checkpoints_mgr.restore import restoring
from support.checkpoints.failpoints import Fault, Killed

FILE_CLASSES = ("MANIFEST.json", "model-0*", "ema-0*", "adam_m-0*", "adam_v-0*", "model.safetensors.index.json")
ENOUGH = 400  # operations of one save, generously


def save_with(failpoint, root, state, fault):
    """One save of step 30 with a fault; returns what it raised."""
    failpoint(fault)
    try:
        CheckpointManager(root).save(30, state)
    except (Killed, CheckpointError) as raised:
        return raised
    finally:
        failpoint(None)
    return None


def test_a_save_killed_at_any_operation_leaves_the_old_or_the_new_step(
    tmp_path, make_state, assert_same, names, restore, failpoint
):
    """Each file operation of a save in turn is the one before which the process dies, retention included."""
    for number in range(ENOUGH):
        root = tmp_path / f"kill_{number}"
        CheckpointManager(root).save(10, make_state(1))
        CheckpointManager(root).save(20, make_state(2))
        fault = Fault(f"*#{number}=die")
        raised = save_with(failpoint, root, make_state(3), fault)
        if not fault.reached:
            break
        assert isinstance(raised, Killed)
        restored = restore(root)
        assert restored.step in (20, 30)
        assert_same(restored.state, make_state(restored.step // 10))
        assert (root / "step_0000000030").exists() == (restored.step == 30)
        assert "quarantine" not in names(root)
        for name in names(root):  # this process lives on, but it stands for a dead one
            if name.startswith(".tmp-"):
                (root / name).rename(root / f"{name}0")
        CheckpointManager(root).save(40, make_state(4))
        assert names(root)[-1] == "step_0000000040"
        assert not [name for name in names(root) if name.startswith(".")]
        shutil.rmtree(root)
    assert 50 < number < ENOUGH, "the last operation was not found"


def test_an_io_error_at_any_operation_is_a_clean_failure_or_harmless(
    tmp_path, make_state, assert_same, names, restore, failpoint
):
    harmless = in_doubt = 0
    for number in range(ENOUGH):
        root = tmp_path / f"error_{number}"
        CheckpointManager(root).save(20, make_state(2))
        fault = Fault(f"*#{number}=raise:EIO")
        raised = save_with(failpoint, root, make_state(3), fault)
        if not fault.reached:
            break
        assert not [name for name in names(root) if name.startswith(".tmp-")]
        restored = restore(root)
        assert_same(restored.state, make_state(restored.step // 10))
        if raised is None:
            harmless += 1
            assert restored.step == 30
        else:
            assert str(raised).startswith("cannot save step 30: ")
            assert "Input/output error" in str(raised)
            doubt = "may not outlive a power cut" in str(raised)
            in_doubt += doubt
            assert restored.step == (30 if doubt else 20)
        shutil.rmtree(root)
    assert number > 40
    assert in_doubt == 1
    assert harmless < 20


@pytest.mark.parametrize("operation", ["create", "reserve", "write", "fsync", "sync_dir"])
@pytest.mark.parametrize("failing_rank", [0, 1, 2])
def test_one_rank_that_cannot_write_fails_all_alike(
    tmp_path, run_ranks, make_state, sharded, names, failpoint, operation, failing_rank
):
    def save(step, seed):
        def work(comm):
            return CheckpointManager(tmp_path, comm).save(step, sharded(make_state(seed), comm.rank, 3))

        return run_ranks(3, work)

    save(20, 2)
    failpoint(Fault(f"{operation}#0@rank{failing_rank}=raise:ENOSPC"))
    errors = save(30, 3)
    failpoint(None)
    assert [type(error) for error in errors] == [CheckpointError] * 3
    assert len({str(error) for error in errors}) == 1
    assert str(errors[0]).startswith(f"cannot save step 30: rank {failing_rank}: [Errno 28] No space left on device: ")
    assert names(tmp_path) == ["step_0000000020"]
    assert {result.step for result in save(30, 3)} == {30}


def test_a_failed_fsync_is_not_tried_again(tmp_path, make_state, failpoint):
    """The kernel reports a lost page once: a second fsync of the same file would succeed and lie."""
    flushed = []

    def hook(operation, path, detail):
        if operation == "fsync":
            flushed.append(path)
            raise OSError(errno.EIO, "Input/output error")

    failpoint(hook)
    with pytest.raises(CheckpointError, match="Input/output error"):
        CheckpointManager(tmp_path).save(1, make_state(1))
    assert len(flushed) == 1


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY])
def test_a_rename_that_happened_but_was_reported_as_failed_is_a_commit(tmp_path, make_state, monkeypatch, number):
    """What an NFS client sees when the answer to its first rename was lost."""
    real = Path.rename

    def lost_answer(source, target):
        real(source, target)
        if Path(target).name == "step_0000000030":
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "rename", lost_answer)
    assert CheckpointManager(tmp_path).save(30, make_state(3)).step == 30
    assert CheckpointManager(tmp_path).latest() == 30


def test_of_two_writers_of_one_step_exactly_one_wins(
    tmp_path, run_ranks, make_state, assert_same, names, failpoint, restore
):
    """Two jobs of 1 and 2 ranks meet just before the rename that commits."""
    both = threading.Barrier(2)

    def meet(operation, path, target):
        if operation == "rename" and target.name == "step_0000000001":
            both.wait(60)

    def other():
        failures.append(run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(2))))

    failpoint(meet)
    failures = []
    job = threading.Thread(target=other)
    job.start()
    (mine,) = run_ranks(1, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    job.join()
    outcomes = [mine, failures[0][0]]
    assert failures[0][0] == failures[0][1] or str(failures[0][0]) == str(failures[0][1])
    lost = [outcome for outcome in outcomes if isinstance(outcome, CheckpointError)]
    assert len(lost) == 1
    assert "step_0000000001 was taken by another writer" in str(lost[0])
    assert_same(restore(tmp_path).state, make_state(1 if lost[0] is outcomes[1] else 2))
    assert names(tmp_path) == ["step_0000000001"]


def test_ranks_with_another_root_are_refused(tmp_path, run_ranks, make_state, names, monkeypatch):
    """Such as one named after each rank's own clock."""
    monkeypatch.setattr("checkpoints_mgr.save.writing.VISIBLE_TIMEOUT_S", 0.05)
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path / str(comm.rank), comm).save(1, make_state(1)))
    assert len({str(error) for error in errors}) == 1
    assert "rank 1: " in str(errors[0])
    assert "do all ranks have the same checkpoint directory" in str(errors[0])
    assert names(tmp_path / "0") == []


def test_files_that_become_visible_late_are_waited_for(tmp_path, run_ranks, make_state, monkeypatch):
    """As on a network file system whose clients cache what a directory holds."""
    seen = {}
    real = storage.is_occupied

    def late(path):
        with threading.Lock():
            seen[path] = seen.get(path, 0) + 1
        return real(path) and (seen[path] > 2 or path.name == "step_0000000001")

    monkeypatch.setattr(storage, "is_occupied", late)
    results = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    assert [result.step for result in results] == [1, 1]


def test_an_unexpected_exception_fails_all_alike_and_is_logged(tmp_path, run_ranks, make_state, failpoint, caplog):
    def bug(operation, path, detail):
        if operation == "create" and "-00001-of-" in path.name:
            raise ZeroDivisionError("a bug")

    failpoint(bug)
    errors = run_ranks(2, lambda comm: CheckpointManager(tmp_path, comm).save(1, make_state(1)))
    assert {str(error) for error in errors} == {"cannot save step 1: rank 1: ZeroDivisionError: a bug"}
    assert any(record.exc_info for record in caplog.records)


@pytest.mark.parametrize("place", ["first", "middle", "last"])
@pytest.mark.parametrize("pattern", FILE_CLASSES)
def test_a_flipped_bit_sends_the_step_to_quarantine_and_falls_back(
    two_steps, run_ranks, make_state, assert_same, names, flip_bit, restore, caplog, pattern, place
):
    victim = sorted((two_steps / "step_0000000020").glob(pattern))[-1]
    position = {"first": 0, "middle": victim.stat().st_size // 2, "last": -1}[place]
    flip_bit(victim, position)
    with caplog.at_level(logging.ERROR):
        results = run_ranks(2, lambda comm: restore(two_steps, comm=comm))
    if pattern == "model.safetensors.index.json":
        # No tensor lies in it, so that no restore reads it; verify does.
        assert [result.step for result in results] == [20, 20]
        return
    for result in results:
        assert (result.step, result.quarantined) == (10, (20,))
        assert_same(result.state, make_state(1))
    assert victim.name in caplog.text
    assert names(two_steps) == ["quarantine", "step_0000000010"]
    (moved,) = names(two_steps / "quarantine")
    assert moved.startswith("step_0000000020-corrupt-")
    assert victim.name in names(two_steps / "quarantine" / moved)


@pytest.mark.parametrize("pattern", FILE_CLASSES)
@pytest.mark.parametrize("damage", ["missing", "short", "long", "empty"])
def test_a_file_of_another_size_is_corrupt(two_steps, restore, pattern, damage):
    victim = next(iter((two_steps / "step_0000000020").glob(pattern)))
    content = victim.read_bytes()
    victim.write_bytes({"short": content[:-1], "long": content + b"\0", "empty": b"", "missing": b""}[damage])
    if damage == "missing":
        victim.unlink()
    assert CheckpointManager(two_steps).latest() == 10
    assert restore(two_steps).step == 10
    assert CheckpointManager(two_steps).latest() == 10


def test_every_step_corrupt_is_an_error_and_not_a_fresh_start(two_steps, run_ranks, flip_bit, restore):
    for step in two_steps.glob("step_*"):
        flip_bit(step / "ema-00000-of-00002.safetensors", 4100)
    errors = run_ranks(2, lambda comm: restore(two_steps, comm=comm))
    assert [type(error) for error in errors] == [CheckpointError] * 2
    assert str(errors[0]) == str(errors[1])
    assert "all that was tried is corrupt" in str(errors[0])
    with pytest.raises(CheckpointError, match="remove quarantine/ to begin anew"):
        restore(two_steps)  # the next start
    shutil.rmtree(two_steps / "quarantine")
    assert restore(two_steps) is None


def test_a_given_corrupt_step_does_not_fall_back(two_steps, flip_bit, restore):
    flip_bit(two_steps / "step_0000000020" / "adam_v-00001-of-00002.safetensors", -1)
    with pytest.raises(CheckpointError, match="adam_v-00001-of-00002"):
        restore(two_steps, 20)
    assert CheckpointManager(two_steps).latest() == 10


def test_a_transient_read_error_condemns_nothing(two_steps, run_ranks, names, failpoint, restore):
    failpoint(Fault("read#9=raise:EIO"))
    errors = run_ranks(2, lambda comm: restore(two_steps, comm=comm))
    assert {type(error) for error in errors} == {CheckpointFaultError}
    assert len({str(error) for error in errors}) == 1
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


def test_a_rank_that_alone_reads_wrong_bytes_condemns_nothing(two_steps, run_ranks, names, monkeypatch, restore):
    """Rank 0 reads the committed bytes, so the fault is the other host's: an error, no quarantine."""
    real = restoring.read_parts

    def flaky(directory, manifest, parts):
        if threading.current_thread().name == "rank_1":
            raise CorruptCheckpointError("a digest mismatch", "ema-00001-of-00002.safetensors")
        real(directory, manifest, parts)

    monkeypatch.setattr(restoring, "read_parts", flaky)
    errors = run_ranks(2, lambda comm: restore(two_steps, comm=comm))
    assert {type(error) for error in errors} == {CheckpointError}
    assert {"rank 1 reads other bytes than rank 0, check its host: a digest mismatch" in str(e) for e in errors} == {
        True
    }
    assert names(two_steps) == ["step_0000000010", "step_0000000020"]


def test_what_rank_0_does_not_read_is_condemned_for_all(
    two_steps, run_ranks, make_state, sharded, blank, flip_bit, names
):
    """Rank 1 alone finds the fault, in its own range; rank 0 looks again before it moves the step."""
    flip_bit(two_steps / "step_0000000020" / "ema-00001-of-00002.safetensors", -1)

    def read(comm):
        return CheckpointManager(two_steps, comm).restore(blank(sharded(make_state(0), comm.rank, 2))).step

    assert run_ranks(2, read) == [10, 10]
    assert names(two_steps) == ["quarantine", "step_0000000010"]


def test_a_step_that_retention_takes_from_a_reader_is_not_corrupt(two_steps, names, failpoint, restore):
    reads = []

    def prune(operation, path, detail):
        if operation == "read" and path.suffix == ".safetensors":
            reads.append(path)
            if len(reads) == 2:
                (two_steps / "step_0000000020").rename(two_steps / ".trash-step_0000000020-abc")

    failpoint(prune)
    with pytest.raises(CheckpointError, match="step_0000000020 was removed while it was read"):
        restore(two_steps)
    assert names(two_steps) == [".trash-step_0000000020-abc", "step_0000000010"]
    failpoint(None)
    assert restore(two_steps).step == 10


def test_a_read_only_root_still_falls_back(two_steps, flip_bit, names, failpoint, restore):
    flip_bit(two_steps / "step_0000000020" / "MANIFEST.json", 100)
    failpoint(Fault("mkdir#0=raise:EROFS"))
    assert restore(two_steps).step == 10
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
        ("fsync", "model.safetensors.index.json"),
        *(("fsync", f"{component}-00000-of-00001.safetensors") for component in reversed(data)),
        ("fsync", tmp),
        ("fsync", "MANIFEST.json"),
        ("fsync", tmp),
        ("rename", "step_0000000001"),
        ("fsync", "root"),
    ]
