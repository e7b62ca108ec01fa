"""What is given up: a rule over sound steps alone. Whatever else lies in a root is neither counted nor removed."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpoints_mgr import CheckpointManager, Retention, State
from checkpoints_mgr.cli import main
from checkpoints_mgr.disk.digests import canonical_json, document_digest
from checkpoints_mgr.disk.layout import VERIFIED, step_name

STEPS = (10, 20, 30, 40, 50)
LOSSES = {10: 0.3, 20: 0.1, 30: 0.5, 40: 0.2, 50: 0.4}
SAVED, SAVED_LOSS = 60, 0.45
ALWAYS = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def small_state(step):
    return State({"model/w": np.full((3, 5), step, np.float32), "ema/w": np.arange(70, dtype=np.float32)}, {"n": step})


def data_file(step):
    return next(step.glob("ema-*.safetensors"))


def rewrite(path, change):
    path.write_bytes(change(path.read_bytes()))


def flipped(content):
    return content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]


def put_in_place(step, make):
    shutil.rmtree(step)
    make(step)


def of_another_step(content):
    document = json.loads(content)
    del document["digest"]
    document["step"] += 1
    return canonical_json(document | {"digest": document_digest(document)})


DAMAGE = {
    "empty directory": lambda step: put_in_place(step, Path.mkdir),
    "a file in its place": lambda step: put_in_place(step, Path.touch),
    "a dangling link": lambda step: put_in_place(step, lambda path: path.symlink_to("nowhere")),
    "no manifest": lambda step: (step / "MANIFEST.json").unlink(),
    "empty manifest": lambda step: (step / "MANIFEST.json").write_bytes(b""),
    "truncated manifest": lambda step: rewrite(step / "MANIFEST.json", lambda content: content[: len(content) // 2]),
    "flipped manifest": lambda step: rewrite(step / "MANIFEST.json", flipped),
    "manifest of a list": lambda step: (step / "MANIFEST.json").write_bytes(b"[1, 2]"),
    "a deep manifest": lambda step: (step / "MANIFEST.json").write_bytes(b"[" * 100_000),
    "a folder as manifest": lambda step: ((step / "MANIFEST.json").unlink(), (step / "MANIFEST.json").mkdir()),
    "a pipe as manifest": lambda step: ((step / "MANIFEST.json").unlink(), os.mkfifo(step / "MANIFEST.json")),
    "manifest of another step": lambda step: rewrite(step / "MANIFEST.json", of_another_step),
    "missing file": lambda step: data_file(step).unlink(),
    "truncated file": lambda step: rewrite(data_file(step), lambda content: content[:-1]),
    "longer file": lambda step: rewrite(data_file(step), lambda content: content + b"\0"),
    "flipped byte": lambda step: rewrite(data_file(step), flipped),
    "flipped index": lambda step: rewrite(step / "model.safetensors.index.json", flipped),
    "a pipe as file": lambda step: ((file := data_file(step)).unlink(), os.mkfifo(file)),
}
# Not damage: the step is as sound as before.
HARMLESS = {
    "foreign file": lambda step: (step / "notes.txt").write_text("mine"),
    "other times": lambda step: os.utime(data_file(step), (0, 0)),
    "copied": lambda step: (
        shutil.copytree(step, step.with_name("x")),
        shutil.rmtree(step),
        step.with_name("x").rename(step),
    ),
}
MEMORIES = {
    "as it is": lambda root: None,
    "lost": lambda root: (root / VERIFIED).unlink(missing_ok=True),
    "torn": lambda root: rewrite(root / VERIFIED, lambda content: content[:-9]),
    "nonsense": lambda root: (root / VERIFIED).write_text('{"steps": 3, "digest": null}'),
    "forged": lambda root: rewrite(root / VERIFIED, lambda content: content.replace(b'"save_id":"', b'"save_id":"0')),
    "a folder": lambda root: ((root / VERIFIED).unlink(), (root / VERIFIED).mkdir()),
}


def by_the_rule(losses, pinned, last, every, best):
    """Which of the sound steps stay, written down once more."""
    steps = sorted(losses)
    kept = set(steps[-last:]) | (pinned & set(steps))
    for start in range(0, steps[-1] + 1 if every and steps else 0, every or 1):
        kept |= set([step for step in steps if start <= step < start + every][:1])
    return kept | set(sorted(steps, key=lambda step: losses[step])[:best])


@pytest.fixture(scope="session")
def whole_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("whole") / "root"
    manager = CheckpointManager(root, retention=Retention(99))
    for step in STEPS:
        manager.save(step, small_state(step), {"validation_loss": LOSSES[step]})
    return root


def copy_of(whole, target):
    """By hard links, which have the times and inodes of the original: what it remembers stays true."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(whole, target, copy_function=os.link)
    (target / VERIFIED).unlink()
    shutil.copy(whole / VERIFIED, target / VERIFIED)
    return target


def contents(path):
    if not path.is_dir() or path.is_symlink():
        return path.lstat().st_ino
    return {each.name: each.lstat().st_ino if not each.is_file() else each.read_bytes() for each in path.iterdir()}


def unlinked(root, step):
    """A step whose files are its own: damage must not reach the original."""
    directory = root / step_name(step)
    for path in directory.iterdir():
        times, content = path.stat(), path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return directory


def prune(capsys, root, *options):
    with pytest.raises(SystemExit) as ended:
        main(["prune", str(root), "--delete", *map(str, options)])
    return ended.value.code, *capsys.readouterr()


def check(root, before, faults, losses, pinned, rule):
    """What is there after retention, of the steps that were there before."""
    last, every, best = rule
    there = {step for step in STEPS if os.path.lexists(root / step_name(step))}
    sound = {step: loss for step, loss in losses.items() if step not in faults}
    kept = by_the_rule(sound, pinned, last, every, best) if sound else set()
    assert there == (kept | set(faults)) & set(STEPS)
    for step in there:
        assert contents(root / step_name(step)) == before[step], step
    assert not sound or any(os.path.lexists(root / step_name(step)) for step in sound)


@ALWAYS
@given(
    damage=st.dictionaries(st.sampled_from(STEPS), st.sampled_from([*DAMAGE, *HARMLESS]), max_size=5),
    pinned=st.sets(st.sampled_from(STEPS), max_size=2),
    rule=st.tuples(st.integers(1, 3), st.sampled_from([None, 1, 15, 20, 1000]), st.integers(0, 2)),
    memory=st.sampled_from(list(MEMORIES)),
    saves=st.booleans(),
)
def test_any_damage_under_any_rule(whole_root, tmp_path, capsys, damage, pinned, rule, memory, saves):
    root = copy_of(whole_root, tmp_path / "root")
    MEMORIES[memory](root)
    for step, kind in damage.items():
        (DAMAGE | HARMLESS)[kind](unlinked(root, step))
    for step in pinned:
        (root / f"{step_name(step)}.keep").touch()
    faults = {step for step, kind in damage.items() if kind in DAMAGE}
    before = {step: contents(root / step_name(step)) for step in STEPS}
    last, every, best = rule
    losses = LOSSES | ({SAVED: SAVED_LOSS} if saves else {})
    if saves:
        retention = Retention(last, every, best, "validation_loss")
        CheckpointManager(root, retention=retention).save(SAVED, small_state(SAVED), {"validation_loss": SAVED_LOSS})
        check(root, before, faults, losses, pinned, rule)
        assert (root / step_name(SAVED) / "MANIFEST.json").exists()
        return
    options = ["--keep-last", last, "--keep-best", best, *(["--keep-every", every] if every else [])]
    code, out, err = prune(capsys, root, *options)
    check(root, before, faults, losses, pinned, rule)
    assert code == (1 if faults else 0), err
    assert sorted(line.split(" does not count")[0] for line in err.splitlines()) == sorted(
        f"vpred-ckpt: {root / step_name(step)}" for step in faults
    )
    assert all(step_name(step) not in out for step in faults)
    assert prune(capsys, root, *options)[:2] == (code, "nothing to remove\n")


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("place", [10, 30, 50])
@pytest.mark.parametrize("saves", [True, False])
def test_one_damaged_step(whole_root, tmp_path, capsys, kind, place, saves):
    """The newest sound one stays though the damaged may be newer, pinned and the best."""
    root = copy_of(whole_root, tmp_path / "root")
    DAMAGE[kind](unlinked(root, place))
    (root / f"{step_name(place)}.keep").touch()
    before = {step: contents(root / step_name(step)) for step in STEPS}
    if saves:
        CheckpointManager(root, retention=Retention(1)).save(SAVED, small_state(SAVED))
        check(root, before, {place}, LOSSES | {SAVED: 1.0}, set(), (1, None, 0))
    else:
        code, _, err = prune(capsys, root, "--keep-last", 1)
        check(root, before, {place}, LOSSES, set(), (1, None, 0))
        assert (code, err.count("\n")) == (1, 1)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_nothing_sound_nothing_removed(whole_root, tmp_path, capsys, count):
    root = copy_of(whole_root, tmp_path / "root")
    for step in STEPS[:-count]:
        shutil.rmtree(root / step_name(step))
    for step in STEPS[-count:]:
        DAMAGE["truncated manifest"](unlinked(root, step))
    code, out, err = prune(capsys, root, "--keep-last", 1, "--keep-best", 1)
    assert (code, out, err.count("does not count and stays")) == (1, "nothing to remove\n", count)
    assert "put its files back, or move it to quarantine/" in err


def test_a_step_that_cannot_be_read_now_stays_and_does_not_count(whole_root, tmp_path, capsys, failpoint):
    root = copy_of(whole_root, tmp_path / "root")
    (root / VERIFIED).unlink()

    def fail(operation, path, detail):
        if operation == "read" and path.parent.name in (step_name(20), step_name(50)):
            raise OSError(5, "Input/output error", str(path))

    failpoint(fail)
    code, out, err = prune(capsys, root, "--keep-last", 1, "--keep-best", 1)
    assert sorted(path.name for path in root.glob("step_*")) == [step_name(step) for step in (20, 40, 50)]
    assert (code, err.count("Input/output error"), out.count("removed")) == (2, 2, 2)


def test_bytes_are_compared_once(whole_root, tmp_path, capsys, read_bytes):
    """By a save, a prune or a restore; afterwards no save, and no prune, reads them again."""
    root = copy_of(whole_root, tmp_path / "root")
    keep_all = Retention(99)
    prune(capsys, root, "--keep-last", 9)
    assert sum(read_bytes) == 0  # the saves have written what they remember
    data = {path: path.stat().st_size for path in root.glob("step_*/*") if path.name != "MANIFEST.json"}
    (root / VERIFIED).unlink()
    manager = CheckpointManager(root, retention=keep_all)
    manager.save(60, small_state(60))
    assert sum(read_bytes) == sum(data.values())
    for step in (70, 80):
        manager.save(step, small_state(step))
    prune(capsys, root, "--keep-last", 9)
    assert sum(read_bytes) == sum(data.values())
    os.utime(data_file(unlinked(root, 30)), (0, 0))
    read_bytes.clear()
    prune(capsys, root, "--keep-last", 9)
    prune(capsys, root, "--keep-last", 9)
    assert sum(read_bytes) == sum(size for path, size in data.items() if path.parent.name == step_name(30))


def test_a_restore_remembers_what_it_read(whole_root, tmp_path, capsys, read_bytes):
    root = copy_of(whole_root, tmp_path / "root")
    for step in STEPS[:-1]:
        shutil.rmtree(root / step_name(step))
    (root / VERIFIED).unlink()
    part = State({"model/w": np.zeros((3, 5), np.float32)}, {})
    assert CheckpointManager(root).restore(part).step == 50
    assert not (root / VERIFIED).exists()  # it has read a part
    assert CheckpointManager(root).restore(small_state(0)).step == 50
    read_bytes.clear()
    prune(capsys, root)
    assert sum(read_bytes) == 0
    rewrite(data_file(unlinked(root, 50)), flipped)
    assert prune(capsys, root)[0] == 1


def test_a_root_that_cannot_be_written_to_is_pruned_all_the_same(whole_root, tmp_path, capsys, failpoint):
    """The memory is a convenience; a failure of it costs another reading."""
    root = copy_of(whole_root, tmp_path / "root")
    (root / VERIFIED).unlink()

    def fail(operation, path, detail):
        if path.name.startswith(VERIFIED) and operation != "read":
            raise OSError(28, "No space left on device", str(path))

    failpoint(fail)
    assert prune(capsys, root, "--keep-last", 1)[0] == 0
    assert [path.name for path in root.glob("step_*")] == [step_name(50)]


def test_the_memory_is_small(whole_root):
    """A line a step, however many files it has."""
    document = json.loads((whole_root / VERIFIED).read_text())
    assert document["steps"].keys() == {step_name(step) for step in STEPS}
    assert len(json.dumps(document["steps"][step_name(50)])) < 250
    assert (whole_root / VERIFIED).stat().st_mode & 0o777 == 0o666 & ~umask()


def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_fifo_is_no_reason_to_wait(whole_root, tmp_path):
    root = copy_of(whole_root, tmp_path / "root")
    DAMAGE["a pipe as manifest"](unlinked(root, 50))
    DAMAGE["a file in its place"](unlinked(root, 40))
    restored = CheckpointManager(root).restore(small_state(0))
    assert (restored.step, restored.quarantined) == (30, (50, 40))
