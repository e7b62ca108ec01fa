"""Atomic files, records of the run directory, and the tie to the parent process."""

import contextlib
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from checkpoints_mgr.disk.layout import MANIFEST, step_name, tmp_name
from launcher.contract.environment import environment, export
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import Outcome, RankStatus, RunDir, Summary
from support import CHECKOUT


def status(**changes) -> RankStatus:
    values = {
        "rank": 1,
        "hostname": "node",
        "pid": 7,
        "phase": "training",
        "step": 3,
        "total_steps": 9,
        "samples_seen": 12,
        "updated_unix_s": 1.5,
    }
    return RankStatus(**(values | changes))


def test_write_atomic_replaces_whole_and_leaves_nothing_aside(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, "één\n")
    write_atomic(path, b"two", fsync=False)
    assert path.read_bytes() == b"two"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_write_atomic_keeps_the_old_file_on_an_error(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_atomic(path, "old")

    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_records_read_back_equal(tmp_path):
    records = [
        status(loss=0.1, images_per_second=3.5),
        status(loss=None),
        Outcome(rank=0, hostname="node", pid=7, returncode=-9, last_step=3, ended_unix_s=2.5),
        Summary(
            steps=9,
            samples_seen=36,
            final_loss=0.25,
            seconds=3.0,
            retrieval=None,
            report=Path("report.html"),
            samples=Path("samples"),
            weights=Path("weights"),
        ),
    ]
    for index, record in enumerate(records):
        path = tmp_path / f"{index}.json"
        record.write(path)
        assert type(record).read(path) == record


def test_a_loss_that_is_no_number_is_not_hidden(tmp_path):
    status(loss=math.nan).write(tmp_path / "s.json")
    loss = RankStatus.read(tmp_path / "s.json").loss
    assert loss is not None and math.isnan(loss)


def test_absent_and_foreign_records(tmp_path):
    path = tmp_path / "s.json"
    assert RankStatus.read(path) is None
    path.write_text('{"rank": 0}')
    with pytest.raises(ValueError, match=r"s\.json: not a RankStatus record"):
        RankStatus.read(path)


def test_attempts_are_numbered(tmp_path):
    run = RunDir(tmp_path)
    assert (run.last_attempt(), run.next_attempt()) == (0, 1)
    run.attempt(2).root.mkdir(parents=True)
    run.attempt(11).root.mkdir()
    (run.attempts / "notes").mkdir()
    assert (run.last_attempt(), run.next_attempt()) == (11, 12)
    assert run.attempt(2).status(3) == tmp_path / "attempts/0002/rank_3.status.json"


def test_the_environment_is_a_copy_until_exported(monkeypatch):
    monkeypatch.setenv("VPRED_TEST", "before")
    copy = environment()
    copy["VPRED_TEST"] = "changed"
    assert environment()["VPRED_TEST"] == "before"
    export({"VPRED_TEST": "after"})
    assert environment()["VPRED_TEST"] == "after"


GRANDPARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", '''
import os, time
from launcher.contract.process import die_with_parent
die_with_parent(os.getppid())
print(os.getpid(), flush=True)
time.sleep(600)
'''])
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_tied_process_dies_with_its_parent():
    env = environment() | {"PYTHONPATH": str(CHECKOUT)}
    parent = subprocess.Popen([sys.executable, "-c", GRANDPARENT], stdout=subprocess.PIPE, env=env)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    child = psutil.Process(pid)
    parent.kill()
    parent.communicate()
    deadline_s = time.monotonic() + 60
    with contextlib.suppress(psutil.NoSuchProcess):
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline_s
            time.sleep(0.02)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_a_process_whose_parent_is_gone_ends_at_once():
    program = "from launcher.contract.process import die_with_parent; die_with_parent(1 << 30)"
    env = environment() | {"PYTHONPATH": str(CHECKOUT)}
    assert subprocess.run([sys.executable, "-c", program], env=env, check=False).returncode == -9


ORPHAN = """
import os, time
from launcher.contract.process import living_parent
parent = os.getpid()
assert living_parent() is None, "this process leads its session; its parent is in another"
heard, told = os.pipe()
if os.fork() == 0:
    assert living_parent() == parent
    print("child of a living parent", flush=True)
    os.write(told, b".")
    while os.getppid() == parent:
        time.sleep(0.01)
    print(living_parent(), flush=True)
    os._exit(0)
os.read(heard, 1)
os._exit(0)
"""


def test_an_adopted_process_knows_that_its_parent_is_gone():
    env = environment() | {"PYTHONPATH": str(CHECKOUT)}
    process = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, env=env, text=True, start_new_session=True
    )
    output, _ = process.communicate(timeout=60)
    assert output.splitlines() == ["child of a living parent", "None"]


@pytest.mark.parametrize("step", [7, 12_345_678_901])
def test_a_committed_step_is_where_checkpoints_are_put(tmp_path, step):
    run = RunDir(tmp_path)
    assert run.committed_step() == 0
    assert run.manifest(step) == run.checkpoints / step_name(step) / MANIFEST
    for name in (step_name(step), step_name(3), tmp_name(step + 1, "a1", "host-1"), f"{step_name(step + 2)}-corrupt"):
        (run.checkpoints / name).mkdir(parents=True)
        (run.checkpoints / name / MANIFEST).touch()
    (run.checkpoints / step_name(step + 3)).mkdir()
    (run.checkpoints / f"{step_name(step + 4)}.keep").touch()
    assert run.committed_step() == step


def test_names_that_are_not_utf8_are_written_as_json_reads_them(tmp_path):
    name = os.fsdecode(b"\xb9\xb7.jpg")
    write_atomic(tmp_path / "a.json", json.dumps(name, ensure_ascii=False))
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == name
