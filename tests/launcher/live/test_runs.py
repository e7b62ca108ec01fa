"""Which runs are found below a folder, by which names, and what damaged ones do to the others."""

import os
from pathlib import Path

import pytest

from launcher.contract.run_dir import RunDir
from launcher.live import runs as module
from launcher.live.runs import Runs, find_runs
from support.run_dirs import hold, make_run, write_status


@pytest.fixture(autouse=True)
def every_look_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASS_S", 0.0)
    monkeypatch.setattr(module, "_FIND_S", 0.0)


def names(folder: Path) -> dict[str, str]:
    """Path below the folder -> name."""
    return {str(seen.run.root.relative_to(folder)): seen.name for seen in Runs(folder).seen()}


def test_runs_are_found_down_to_three_levels(tmp_path: Path) -> None:
    for place in ("a", "team/b", "team/sweep/0001", "team/sweep/deep/c", ".hidden", "a/attempts/x"):
        make_run(tmp_path / place)
    (tmp_path / "empty" / "folder").mkdir(parents=True)
    (tmp_path / "file").touch()
    assert [str(path.relative_to(tmp_path)) for path in find_runs(tmp_path)] == ["a", "team/b", "team/sweep/0001"]
    assert find_runs(tmp_path / "a") == [tmp_path / "a"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    make_run(tmp_path / "elsewhere" / "x")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "x").symlink_to(tmp_path / "elsewhere" / "x")
    (tmp_path / "runs" / "loop").symlink_to(tmp_path / "runs")
    assert find_runs(tmp_path / "runs") == []


def test_a_submitted_run_waits_and_a_sweep_is_its_runs(tmp_path: Path) -> None:
    for place in ("alone", "sweep"):
        submitted = RunDir(tmp_path / place).submit.submitted_json
        submitted.parent.mkdir(parents=True)
        submitted.write_text("{}")
    make_run(tmp_path / "sweep" / "0000")
    seen = {each.name: each.facts.state for each in Runs(tmp_path).seen()}
    assert seen == {"alone": "waiting", "0000": "lost"}


def test_two_runs_of_one_name_stay_apart_and_the_oldest_keeps_it(tmp_path: Path) -> None:
    for place, begun in (("a/x", 2000.0), ("b/x", 1000.0), ("y", 1000.0)):
        run = make_run(tmp_path / place)
        record = Runs(run.root).seen()[0].facts.record.model_copy(update={"started_unix_s": begun})
        record.write(run.attempt(1).record)
    assert names(tmp_path) == {"a/x": "a/x", "b/x": "x", "y": "y"}
    make_run(tmp_path / "c" / "x")
    assert names(tmp_path) == {"a/x": "a/x", "b/x": "x", "c/x": "c/x", "y": "y"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.plan_json.write_text("{"),
        lambda run: run.plan_json.write_bytes(b"\xff\x00"),
        lambda run: run.attempt(1).record.write_text("[]"),
        lambda run: run.summary_json.write_text(""),
        lambda run: (run.plan_json.unlink(), run.plan_json.mkdir()),
        lambda run: run.attempt(1).stragglers_json.write_text("null"),
    ],
)
def test_a_damaged_run_says_so_and_spares_the_others(tmp_path: Path, damage) -> None:
    make_run(tmp_path / "good")
    damage(make_run(tmp_path / "bad"))
    bad, good = Runs(tmp_path).seen()
    assert good.facts is not None
    assert bad.facts is None and str(tmp_path / "bad") in bad.fault


@pytest.mark.parametrize(
    "damage",
    [
        lambda run: run.events_jsonl.write_text('{"half'),
        lambda run: run.attempt(1).status(0).write_text('{"rank":'),
        lambda run: run.attempt(1).record.unlink(),
        lambda run: run.plan_json.unlink(),
        lambda run: (run.attempts / "²").mkdir(),
        lambda run: run.lock.unlink(),
        lambda run: run.attempt(1).log(0).unlink(),
    ],
)
def test_a_half_written_run_is_still_shown(tmp_path: Path, damage) -> None:
    run = make_run(tmp_path / "run")
    damage(run)
    (seen,) = Runs(tmp_path).seen()
    assert seen.fault == ""
    assert seen.facts.state == "lost"


def test_a_removed_run_disappears_and_a_new_one_appears(tmp_path: Path) -> None:
    run, runs = make_run(tmp_path / "one"), Runs(tmp_path)
    assert [seen.name for seen in runs.seen()] == ["one"]
    run.root.rename(tmp_path / "two")
    assert [seen.name for seen in runs.seen()] == ["two"]


def test_a_pass_is_made_once_for_all_viewers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PASS_S", 60.0)
    run = make_run(tmp_path / "run", hosts=1)
    descriptor = hold(run)
    runs = Runs(tmp_path)
    first = runs.seen()
    write_status(run, 1, 0, "n000", 500, "training", 0.0)
    assert runs.seen() is first
    os.close(descriptor)


def test_an_ended_run_is_read_again_when_it_starts_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", exit_code=75)
    runs = Runs(tmp_path)
    assert runs.seen()[0].facts.state == "stopped"
    descriptor = hold(run)
    assert runs.seen()[0].facts.state == "running"
    os.close(descriptor)


def test_a_name_that_is_not_utf8_is_printable(tmp_path: Path) -> None:
    make_run(tmp_path / os.fsdecode(b"caf\xe9"))
    (seen,) = Runs(tmp_path).seen()
    assert seen.name == "caf\\udce9"
