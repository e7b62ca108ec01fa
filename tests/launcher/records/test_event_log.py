"""RUN/events.jsonl: what is written, what a bad disk does to it, and how `status --events` shows it."""

import json
import logging
import signal
import stat
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.exit_codes import ExitCode
from launcher.records.event_log import EventLog, describe_event, read_events

RESTART = ("cluster.restart.max_restarts=1", "cluster.restart.first_delay_s=0.1")


def names(path: Path) -> list[tuple[str, int]]:
    events, damaged = read_events(path)
    assert damaged == []
    return [(event.event, event.attempt) for event in events]


def test_each_event_is_one_line_of_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    before = time.time()
    log.write("attempt_begun", 1, hosts=("n1", "n2"), ranks=2, resumed_step=0)
    EventLog(path).write("attempt_ended", 1, exit_code=1, text='rank 0 said "no"\nand left', rank=None)
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert before <= first.pop("time_unix_s") <= second.pop("time_unix_s") <= time.time()
    assert first == {"event": "attempt_begun", "attempt": 1, "hosts": ["n1", "n2"], "ranks": 2, "resumed_step": 0}
    assert second["text"] == 'rank 0 said "no"\nand left'


def test_an_event_is_shown_on_one_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"time_unix_s": 0.5, "event": "hang_found", "attempt": 3, "rank": 1, "waited_s": 3.14159, "text": "a\\nb",'
        ' "host": null}\n'
    )
    ((event,), _) = read_events(path)
    line = describe_event(event)
    assert line == '1970-01-01T00:00:00Z  attempt 3  hang_found        rank=1  waited_s=3.1  text="a\\nb"'


def test_a_half_written_line_costs_no_other(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("attempt_begun", 1)
    with path.open("a") as file:
        file.write('{"time_unix_s": 1.0, "eve')
    log.write("attempt_ended", 1)
    with path.open("a") as file:
        file.write('[1]\n{"time_unix_s": 1e300, "event": "attempt_ended", "attempt": 1}\n')
    events, damaged = read_events(path)
    assert [event.event for event in events] == ["attempt_begun", "attempt_ended"]
    assert damaged == [2, 4, 5]
    assert read_events(tmp_path / "none.jsonl") == ([], [])


def test_a_place_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = EventLog(tmp_path)  # a folder
    with caplog.at_level(logging.WARNING):
        log.write("attempt_begun", 1)
        log.write("attempt_ended", 1)
    assert caplog.messages == [f"{tmp_path}: cannot be written (Is a directory)"]
    assert stat.S_ISDIR(tmp_path.stat().st_mode)


def test_a_run_that_fails_and_ends_well_leaves_its_story(bench, capsys: pytest.CaptureFixture[str]) -> None:
    result = bench.launch("fault=kill", "fault_attempts=1", *RESTART)
    assert result.returncode == ExitCode.OK, result.stderr
    path = bench.run.events_jsonl
    assert names(path) == [
        ("attempt_begun", 1),
        ("attempt_ended", 1),
        ("restart_decided", 1),
        ("attempt_begun", 2),
        ("attempt_ended", 2),
        ("run_ended", 2),
    ]
    begun, ended, decided, again, done, left = read_events(path)[0]
    assert left.model_extra == {"exit_code": 0}
    assert begun.model_extra == {"hosts": ("localhost",), "ranks": 2, "resumed_step": 0}
    assert ended.model_extra["exit_code"] == 128 + signal.SIGKILL
    assert (ended.model_extra["rank"], ended.model_extra["host"]) == (1, "localhost")
    assert ended.model_extra["text"].endswith("ended with SIGKILL after step 3")
    assert decided.model_extra["why"] == ended.model_extra["text"]
    assert (decided.model_extra["number"], decided.model_extra["from_step"]) == (1, 2)
    assert (again.model_extra["resumed_step"], done.model_extra["exit_code"]) == (2, 0)
    times = [event.time_unix_s for event in (begun, ended, decided, again, done)]
    assert times == sorted(times) and time.time() - 600 < times[0]

    run = str(bench.run.root)
    assert main(["status", run, "--events"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert 'attempt 1  restart_decided   number=1  max_restarts=1  why="rank 1 on host ' in lines[2]
    assert main(["status", run, "--events", "--json"]) == ExitCode.OK
    assert [each["event"] for each in json.loads(capsys.readouterr().out)] == [name for name, _ in names(path)]
    path.write_text(path.read_text()[:-10])
    assert main(["status", run, "--events"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 5
    assert err == f"{path}: line 6 is not an event; the disk may have been full\n"


def test_a_hang_its_suspect_and_the_signals_are_events(bench) -> None:
    bench.launch("fault=busy", "cluster.supervision.timeouts.step_s=3", "steps=1000")
    events = read_events(bench.run.events_jsonl)[0]
    assert [event.event for event in events][:4] == ["attempt_begun", "hang_found", "suspect_found", "signal_sent"]
    _, hang, suspect, sent = (event.model_extra for event in events[:4])
    assert (hang["phase"], hang["timeout"]) == ("training", "supervision.timeouts.step_s") and hang["waited_s"] > 3
    assert (suspect["rank"], suspect["sign"], suspect["last_step"]) == (
        1, "it is in no collective while others wait in one", 3,
    )  # fmt: skip
    assert sent == {"signal": "SIGTERM", "why": "a rank hangs"}
    assert [event.event for event in events[-2:]] == ["attempt_ended", "run_ended"]


def test_a_checkpoint_and_a_stop_that_were_asked_for_are_events(bench) -> None:
    launcher = bench.start_training()
    launcher.send_signal(signal.SIGUSR2)
    bench.wait_until(lambda: "checkpoint_asked" in bench.run.events_jsonl.read_text())
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    events = read_events(bench.run.events_jsonl)[0]
    assert [event.event for event in events] == [
        *("attempt_begun", "checkpoint_asked", "signal_sent", "attempt_ended", "run_ended"),
    ]
    assert events[2].model_extra == {"signal": "SIGUSR1", "why": "1 request(s) to stop"}
    assert events[3].model_extra["exit_code"] == ExitCode.PREEMPTED
