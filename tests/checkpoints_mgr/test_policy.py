"""When to save, what to keep, and whose a directory is: values against worked examples."""

import os
import subprocess
import sys
import time

import pytest

from checkpoints_mgr import CheckpointError, CheckpointManager, Retention, SaveEvery
from checkpoints_mgr.disk.layout import VERIFIED
from checkpoints_mgr.disk.owner import is_alive, own_tag
from checkpoints_mgr.policy import Kept


def test_by_samples_and_by_time():
    every = SaveEvery(samples=100, seconds=60)
    assert [every.by_samples(seen - 32, seen) for seen in (32, 64, 96, 128, 160, 192, 224)] == [
        False, False, False, True, False, False, True,
    ]  # fmt: skip
    assert every.by_samples(0, 1000)
    assert [every.by_time(seconds) for seconds in (0, 59.9, 60, 1e6)] == [False, False, True, True]
    never = SaveEvery()
    assert not never.by_samples(0, 10**9) and not never.by_time(1e9)


LOSSES = {10: 0.9, 20: 0.3, 30: 0.5, 40: 0.2, 50: 0.7, 60: 0.6}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(1), [60]),
        (Retention(2), [50, 60]),
        (Retention(99), [10, 20, 30, 40, 50, 60]),
        (Retention(1, every_steps=25), [10, 30, 50, 60]),
        (Retention(1, best=2, metric="loss"), [20, 40, 60]),
        (Retention(1, best=1, metric="loss", mode="max"), [10, 60]),
        (Retention(1, best=1, metric="accuracy"), [60]),
        (Retention(2, every_steps=40, best=1, metric="loss"), [10, 40, 50, 60]),
    ],
)
def test_what_stays(retention, kept):
    steps = [Kept(step, metrics={"loss": loss}) for step, loss in LOSSES.items()]
    assert retention.expired(steps) == [step for step in LOSSES if step not in kept]
    pinned = [Kept(step, step == 30, {"loss": loss}) for step, loss in LOSSES.items()]
    assert retention.expired(pinned) == [step for step in LOSSES if step not in (*kept, 30)]
    assert retention.expired([]) == []


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"last": 0}, "keep_last is 0; at least 1"),
        ({"every_steps": 0}, "keep_every is 0; expected at least 1"),
        ({"best": 2}, "keep_best is 2, but no metric"),
    ],
)
def test_a_retention_that_keeps_nothing_is_refused(arguments, fault):
    with pytest.raises(CheckpointError, match=fault):
        Retention(**arguments)


def test_the_best_and_the_pinned_stay_on_disk(tmp_path, make_state, names):
    manager = CheckpointManager(tmp_path, retention=Retention(1, best=1, metric="loss"))
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4)):
        manager.save(step, make_state(step), {"loss": loss})
    assert names(tmp_path) == ["step_0000000002", "step_0000000003"]
    (tmp_path / "step_0000000003.keep").touch()
    manager.save(4, make_state(4), {"loss": 0.05})
    assert names(tmp_path) == ["step_0000000003", "step_0000000003.keep", "step_0000000004"]


def test_a_metric_that_is_no_number_is_refused(tmp_path, make_state, names):
    with pytest.raises(CheckpointError, match=r"metrics\['loss'\] is nan"):
        CheckpointManager(tmp_path).save(1, make_state(1), {"loss": float("nan")})
    assert names(tmp_path) == []


def test_no_step_is_removed_before_the_new_one_is_committed(tmp_path, make_state, names, failpoint):
    manager = CheckpointManager(tmp_path, retention=Retention(1))
    manager.save(1, make_state(1))
    seen = []

    def watch(operation, path, target):
        if operation == "rename" and target.name.startswith((".trash-", "step_")):
            seen.append((target.name[:7], [name for name in names(tmp_path) if name.startswith("step_")]))

    failpoint(watch)
    manager.save(2, make_state(2))
    both = ["step_0000000001", "step_0000000002"]
    assert seen == [("step_00", both[:1]), (".trash-", both)]
    assert names(tmp_path) == both[1:]


def test_the_best_step_stays_while_its_disk_fails(tmp_path, make_state, names, failpoint):
    """Nobody can tell that it is not the best. One that is proven corrupt stays too, but does not count."""
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)):
        CheckpointManager(tmp_path, retention=Retention(9)).save(step, make_state(step), {"loss": loss})
    (tmp_path / "step_0000000002" / "MANIFEST.json").write_text("nonsense")
    (tmp_path / VERIFIED).unlink()

    def fail(operation, path, detail):
        if operation == "read" and path.parent.name == "step_0000000001":
            raise OSError(5, "Input/output error")

    failpoint(fail)
    CheckpointManager(tmp_path, retention=Retention(1, best=1, metric="loss")).save(5, make_state(5), {"loss": 0.5})
    failpoint(None)
    assert names(tmp_path) == [f"step_{step:010d}" for step in (1, 2, 3, 5)]


def tag(**changes):
    fields = dict(zip(("host", "boot", "namespace", "pid", "started"), own_tag().split("."), strict=True))
    return ".".join({**fields, **changes}.values())


def test_who_is_alive():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        fields = (f"/proc/{child.pid}/stat", 21)
        with open(fields[0]) as stat:  # noqa: PTH123
            started = stat.read().rsplit(")", 1)[1].split()[fields[1] - 2]
        running = tag(pid=str(child.pid), started=started)
        assert is_alive(running)
        child.kill()
        deadline = time.monotonic() + 60
        while is_alive(running) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert is_alive(running) is False  # a zombie: nobody has waited for it yet
    finally:
        child.kill()
        child.wait()
    assert is_alive(running) is False
    assert is_alive(own_tag()) is True
    assert is_alive(tag(started="1")) is False  # a later process of the same number
    assert is_alive(tag(boot="00000000")) is False
    for elsewhere in (tag(host="elsewhere"), tag(namespace="00000000"), tag(boot="unknown"), "", "a.b", tag(pid="x")):
        assert is_alive(elsewhere) is None


@pytest.mark.parametrize(
    ("owner", "hours", "stays"),
    [
        (lambda: own_tag(), 48, True),
        (lambda: tag(started="1"), 0, False),
        (lambda: tag(boot="00000000"), 0, False),
        (lambda: tag(host="elsewhere"), 0, True),
        (lambda: tag(host="elsewhere"), 2, False),
        (lambda: "who knows", 2, False),
    ],
)
def test_only_what_dead_saves_left_is_removed(two_steps, make_state, names, owner, hours, stays):
    left = two_steps / f".tmp-step_0000000030-abc@{owner()}"
    left.mkdir()
    (left / "model-00000-of-00001.safetensors").write_bytes(b"half")
    (two_steps / ".trash-step_0000000001-abc").mkdir()
    then = time.time() - 3600 * hours
    for path in (left / "model-00000-of-00001.safetensors", left):
        os.utime(path, (then, then))
    CheckpointManager(two_steps).save(30, make_state(3))
    assert names(two_steps) == [left.name] * stays + ["step_0000000020", "step_0000000030"]


def test_the_order_of_steps_does_not_depend_on_clocks(two_steps, make_state, names, restore, monkeypatch):
    """Times of files reversed, and a clock a year back: a step is newer if its number is higher."""
    for step, unix_s in ((10, 2e9), (20, 1e9)):
        os.utime(two_steps / f"step_{step:010d}", (unix_s, unix_s))
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() - 365 * 86400 * 10**9)
    assert restore(two_steps).step == 20
    CheckpointManager(two_steps).save(30, make_state(3))
    assert names(two_steps) == ["step_0000000020", "step_0000000030"]
    assert restore(two_steps).step == 30
