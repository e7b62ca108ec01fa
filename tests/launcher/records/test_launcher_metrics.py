"""The launcher's metrics: the table, and what runs that end in any way show."""

import os
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.contract.run_dir import RunDir
from launcher.records.attempt_record import AttemptRecord, lost_time, read_records, without_verdict
from launcher.records.event_log import EventLog
from launcher.records.launcher_metrics import LAUNCHER_METRICS, render_launcher_metrics
from launcher.records.run_facts import RunFacts, RunReader
from launcher.records.targets import run_dir_of
from support.run_dirs import hold, make_run, write_status

FAILED = AttemptRecord(
    attempt=1, hosts=("n000", "n001"), world_size=8, started_unix_s=1000.0, ended_unix_s=1500.0, exit_code=137,
    host="n001", last_step=233, checkpoint_step=200, step_s=2.0, total_steps=1000, trained_s=400.0,
)  # fmt: skip


def facts_of(run: RunDir) -> RunFacts:
    return RunReader(run).read(time.time())


def values(*facts: RunFacts) -> dict[tuple[str, ...], float]:
    """(metric, labels' values but the run's) -> value."""
    return values_of(render_launcher_metrics(facts).decode())


def values_of(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name.removeprefix("vpred_launcher_"), *(v for k, v in sorted(sample.labels.items()) if k != "run")):
            sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }  # fmt: skip


def test_names_and_units_follow_the_rules_of_prometheus() -> None:
    for metric in LAUNCHER_METRICS:
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.meaning.endswith(".")
    names = [metric.name for metric in LAUNCHER_METRICS]
    assert len(set(names)) == len(names)


def test_promtool_finds_nothing_to_say(tmp_path: Path) -> None:
    text = render_launcher_metrics([facts_of(make_run(tmp_path / "a", slow=1)), facts_of(make_run(tmp_path / "b"))])
    try:
        answer = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("promtool is not installed")
    assert (answer.returncode, answer.stdout + answer.stderr) == (0, b"")


def test_a_running_run_counts_its_ranks(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", earlier=(FAILED,), slow=5)
    write_status(run, 2, 7, "n001", 420, "validating", time.time())
    write_status(run, 2, 6, "n001", 419, "training", time.time() - 60)
    descriptor = hold(run)
    seen = values(facts_of(run))
    os.close(descriptor)
    assert (seen["run_state", "running"], seen["run_state", "lost"], seen["attempt_running",]) == (1, 0, 1)
    assert (seen["ranks",], seen["ranks_alive",], seen["attempt",]) == (8, 7, 2)
    assert (seen["ranks_in_phase", "training"], seen["ranks_in_phase", "validating"]) == (7, 1)
    assert seen["ranks_waiting",] == 3  # 1, 4, 7
    assert (seen["step",], seen["total_steps",], seen["checkpoint_step",]) == (420, 1000, 400)
    assert (seen["failures_total", "n000"], seen["failures_total", "n001"]) == (0, 1)
    assert seen["failures_total", "unknown"] == 0
    assert seen["straggler_ratio", "n001.cluster", "5"] == pytest.approx(2.9 / 1.6)
    assert seen["trained_seconds_total",] == 400 + 2900
    assert seen["lost_seconds_total", "delay"] == 65
    assert seen["step_timeout_seconds",] == 900
    assert seen["run_dir_free_bytes",] > 0
    assert abs(seen["heartbeat_timestamp_seconds",] - time.time()) < 60


@pytest.mark.parametrize(
    ("exit_code", "state"), [(1, "failed"), (2, "failed"), (75, "stopped"), (76, "failed"), (137, "failed")]
)
def test_an_ended_run_says_how(tmp_path: Path, exit_code: int, state: str) -> None:
    seen = values(facts_of(make_run(tmp_path / "run", exit_code=exit_code)))
    assert {name[1]: value for name, value in seen.items() if name[0] == "run_state"} == {
        name: float(name == state) for name in ("running", "complete", "stopped", "failed", "lost")
    }
    assert seen["attempt_running",] == 0
    assert sum(value for name, value in seen.items() if name[0] == "ranks_in_phase") == 0


def test_a_killed_launcher_is_lost_and_its_attempt_a_failure(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", age_s=60)
    seen = values(facts_of(run))
    assert (seen["run_state", "lost"], seen["run_state", "running"], seen["attempt_running",]) == (1, 0, 0)
    assert (seen["failures_total", "unknown"], seen["ranks_alive",]) == (1, 0)


def test_a_launcher_that_is_killed_before_the_next_attempt_is_lost(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", exit_code=1)
    EventLog(run.events_jsonl).write("restart_decided", 1)
    assert facts_of(run).state == "lost"
    descriptor = hold(run)
    facts = facts_of(run)
    os.close(descriptor)
    assert (facts.state, facts.attempt_runs) == ("running", False)


def test_a_launcher_on_another_host_lives_while_its_lock_is_young(tmp_path: Path) -> None:
    """Locks may not cross hosts."""
    run = make_run(tmp_path / "run")
    run.lock.write_text("123 another-host\n")
    assert facts_of(run).state == "running"
    os.utime(run.lock, (time.time() - 120,) * 2)
    assert facts_of(run).state == "lost"


def test_a_stop_between_two_attempts_is_a_stop(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", exit_code=1)
    log = EventLog(run.events_jsonl)
    log.write("restart_decided", 1)
    log.write("run_ended", 1, exit_code=75)
    assert facts_of(run).state == "stopped"


def test_the_time_after_a_killed_launcher_is_lost_time() -> None:
    killed = FAILED.model_copy(update={"exit_code": None, "ended_unix_s": None})
    before = without_verdict(killed, {}, 1400.0)
    again = FAILED.model_copy(update={"attempt": 2, "started_unix_s": 1700.0, "exit_code": None})
    assert lost_time(again, before, {}).delay_s == 300.0


def test_names_of_runs_keep_their_series_apart(tmp_path: Path) -> None:
    facts = facts_of(make_run(tmp_path / "run"))
    text = render_launcher_metrics([replace(facts, name="a"), replace(facts, name="b")]).decode()
    assert text.count('vpred_launcher_step{run="a"}') == text.count('vpred_launcher_step{run="b"}') == 1


def test_a_real_killed_launcher_does_not_look_running(bench) -> None:
    launcher = bench.start_training("save_every=10")
    bench.wait_until(lambda: values(facts_of(bench.run)).get(("ranks_in_phase", "training")) == 2)
    bench.wait_until(lambda: bench.run.committed_step() > 0)
    assert facts_of(bench.run).state == "running"
    launcher.send_signal(signal.SIGKILL)
    launcher.wait()
    assert facts_of(bench.run).state == "lost"
    again = bench.start("steps=100000", "step_s=0.01", "save_every=10")
    bench.wait_until(lambda: len(facts_of(bench.run).records) == 2 and facts_of(bench.run).record.lost.compile_s > 0)
    again.send_signal(signal.SIGTERM)
    again.communicate(timeout=60)
    seen = values(facts_of(bench.run))
    assert (seen["failures_total", "unknown"], seen["failures_total", "localhost"]) == (1, 0)
    assert seen["lost_seconds_total", "delay"] > 0
    assert seen["run_state", "stopped"] == 1


def test_a_real_run_lists_its_targets_while_it_runs_alone(bench) -> None:
    launcher = bench.start_training()
    assert run_dir_of(bench.run.targets_json.read_text()) == str(bench.run.root)
    bench.wait_until(lambda: "hostname" in bench.run.targets_json.read_text())
    prom = bench.run.launcher_prom
    # The first failure must be an increase: the series are there before it.
    assert 'vpred_launcher_failures_total{host="localhost",run="run"} 0.0' in prom.read_text()
    bench.wait_until(lambda: values_of(prom.read_text())["trained_seconds_total",] > 0)
    assert values_of(prom.read_text())["ranks_in_phase", "training"] == 2
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)
    assert bench.run.targets_json.read_text() == "[]\n"
    assert 'vpred_launcher_run_state{run="run",state="stopped"} 1.0' in prom.read_text()
    assert 'vpred_launcher_ranks_alive{run="run"} 0.0' in prom.read_text()
    assert read_records(bench.run)[0].trained_s > 0
    assert values_of(prom.read_text()) == values(replace(facts_of(bench.run), name="run")) | {
        (name,): values_of(prom.read_text())[name,] for name in ("heartbeat_timestamp_seconds", "run_dir_free_bytes")
    }
