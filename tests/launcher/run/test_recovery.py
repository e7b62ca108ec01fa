"""From a failure to the next attempt: the loop with attempts made up, then a real mpirun with the fake trainer."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RankStatus
from launcher.planning.plan import LaunchPlan
from launcher.processes.ssh import Answer, Ssh
from launcher.processes.sweep import sweep_hosts
from launcher.processes.tied import workers_of
from launcher.rank.lease import Lease, LeaseWatch, fence_s
from launcher.records.attempt_record import AttemptRecord, LostTime, lost_time, read_records
from launcher.run.recovery import Attempted, recover
from launcher.supervision.stop_requests import StopRequest, stop_requests
from launcher.supervision.verdict import Verdict

RESTART = ("cluster.restart.max_restarts=2", "cluster.restart.first_delay_s=0.1")
DEADLINE_S = 60.0


def why_no_mounts() -> str | None:
    """Why a test cannot have a file system of its own here, None when it can."""
    try:
        trial = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"unshare does not run: {error.strerror}"
    return None if trial.returncode == 0 else f"mounts are not allowed here: {trial.stderr.strip()}"


NO_MOUNTS = why_no_mounts()


class Noted:
    """An event log that keeps what it is given."""

    def __init__(self) -> None:
        self.events = []

    def write(self, event, attempt, **fields) -> None:
        self.events.append((event, attempt, fields))


class Made:
    """Attempts that end as told: (exit code, stopped) each; every one leaves a checkpoint."""

    def __init__(self, cluster, *ends: tuple[int, bool]) -> None:
        self.cluster, self.stop, self.noted = cluster, StopRequest(), Noted()
        self.ends, self.clusters, self.swept = list(ends), [], []

    def attempt(self, config) -> Attempted:
        number = len(self.clusters)
        self.clusters.append(config)
        code, stopped = self.ends[number]
        self.stop.count += stopped
        hosts = tuple(host.address for host in config.hosts)
        plan = LaunchPlan.model_construct(ranks=(), hosts=hosts)
        record = AttemptRecord(attempt=number + 1, hosts=hosts, world_size=6, started_unix_s=0.0, host=hosts[0],
                               resumed_step=number, checkpoint_step=number + 1)  # fmt: skip
        return Attempted(plan, Verdict(code, "it broke"), record)

    def sweep(self, hosts) -> list[str]:
        self.swept += hosts
        return []

    def recover(self, **settings) -> Verdict:
        config = self.cluster(first_delay_s=0.0, **settings)
        return recover(config, self.attempt, self.sweep, lambda: (), self.stop, self.noted, lambda: None).verdict


@pytest.mark.parametrize(
    ("ends", "restarts", "attempts", "code"),
    [
        ([(0, False)], 3, 1, 0),
        ([(1, False), (0, False)], 3, 2, 0),
        ([(137, False), (139, False), (0, False)], 3, 3, 0),
        ([(1, False)] * 3, 2, 3, 1),
        ([(1, False)], 0, 1, 1),
        ([(2, False)], 3, 1, 2),
        ([(75, False)], 3, 1, 75),
        ([(76, False)], 3, 1, 76),
        ([(1, True)], 3, 1, 1),  # somebody asked it to stop: a failure on the way changes nothing
    ],
)
def test_what_is_started_again(cluster, ends, restarts, attempts, code):
    made = Made(cluster, *ends)
    assert made.recover(max_restarts=restarts).exit_code == code
    assert len(made.clusters) == attempts


def test_each_decision_is_an_event_with_its_reason(cluster):
    made = Made(cluster, *[(1, False)] * 3)
    made.recover(max_restarts=2)
    (_, _, first), _, (event, attempt, fields) = made.noted.events
    assert [(event, attempt) for event, attempt, _ in made.noted.events] == [
        ("restart_decided", 1),
        ("restart_decided", 2),
        ("restart_refused", 3),
    ]
    assert first == {
        "number": 1, "max_restarts": 2, "why": "it broke", "from_step": 1, "delay_s": 0.0, "hosts": ("n1", "n2", "n3"),
        "ranks": 6,
    }  # fmt: skip
    assert (event, attempt, fields) == ("restart_refused", 3, {"why": "all 2 restarts are used up"})


def test_hosts_are_cleared_before_an_attempt_and_a_bad_one_is_left_out(cluster):
    made = Made(cluster, (1, False), (1, False), (0, False))
    made.recover(max_restarts=3, spare=1)
    assert made.swept == ["n1", "n2", "n3", "s1"] * 2
    assert [[host.address for host in each.hosts] for each in made.clusters] == [
        ["n1", "n2", "n3"],
        ["n1", "n2", "n3"],
        ["n2", "n3", "s1"],
    ]


def test_the_wait_for_a_lost_host_begins_with_the_end_of_the_attempt(cluster, monkeypatch):
    made, slept = Made(cluster, (1, False), (0, False)), []

    def sweep(hosts) -> list[str]:
        time.sleep(0.2)
        return ["n1"] if "n1" in hosts else []

    monkeypatch.setattr("launcher.run.recovery._asked_to_stop_within", lambda delay_s, *_: slept.append(delay_s))
    recover(cluster(first_delay_s=0.0, spare=1), made.attempt, sweep, lambda: (), made.stop, made.noted, lambda: None)
    whole_s = fence_s(cluster().launcher.lease_s)
    assert whole_s - 20 < slept[0] <= whole_s - 0.4  # both sweeps


def test_a_wish_to_stop_ends_the_wait(cluster, caplog):
    sender = subprocess.Popen([sys.executable, "-c", f"import os, time; time.sleep(1); os.kill({os.getpid()}, 15)"])
    made, begun = Made(cluster, (1, False)), time.monotonic()
    with stop_requests() as stop:
        ended = recover(
            cluster(first_delay_s=30.0), made.attempt, made.sweep, lambda: (), stop, made.noted, lambda: None
        )
        sender.wait()
    assert time.monotonic() - begun < 20
    assert ended.verdict.exit_code == ExitCode.PREEMPTED
    assert "it broke; restart 1 of 10 from step 1 in 30 s" in caplog.messages


def status(rank: int, **phases: float) -> RankStatus:
    return RankStatus(rank=rank, hostname="n", pid=1, phase="training", step=8, total_steps=9, samples_seen=8,
                      resumed_step=4, phase_unix_s=phases, updated_unix_s=99.0)  # fmt: skip


def test_lost_time_is_told_apart():
    before = AttemptRecord(attempt=1, hosts=("n",), world_size=2, started_unix_s=0.0, ended_unix_s=50.0, exit_code=1,
                           last_step=7, step_s=2.0, detection_s=3.0)  # fmt: skip
    now = AttemptRecord(attempt=2, hosts=("n",), world_size=2, started_unix_s=60.0)
    slow = status(1, starting=66.0, compiling=71.0, training=90.0)
    found = lost_time(now, before, {0: status(0, starting=64.0, compiling=70.0, training=90.0), 1: slow})
    assert found == LostTime(detection_s=3.0, delay_s=10.0, rollback_s=6.0, start_s=6.0, load_s=5.0, compile_s=19.0)
    assert lost_time(now, before, {0: status(0, starting=64.0), 1: slow}).compile_s == 0.0
    stopped = before.model_copy(update={"exit_code": 75})
    assert lost_time(now, stopped, {1: slow}).delay_s == 0.0


def test_a_lease_runs_out_when_nobody_renews_it_and_not_before(tmp_path):
    path = tmp_path / "lease"
    Lease(path, 10.0).renew()
    watch = LeaseWatch(path, 10.0, now_s=100.0)
    assert not watch.has_run_out(109.0)
    os.utime(path, ns=(1, 1))  # a clock that stands elsewhere: any change is a sign of life
    assert not watch.has_run_out(111.0)
    assert not watch.has_run_out(120.9)
    assert watch.has_run_out(121.1)
    os.utime(path)
    path.unlink()
    assert watch.has_run_out(122.0)


def test_a_lease_is_renewed_on_a_full_disk_and_not_too_often(tmp_path):
    path = tmp_path / "lease"
    lease = Lease(path, 100.0)
    lease.renew()
    first = path.stat().st_mtime_ns
    lease.renew()
    assert path.stat().st_mtime_ns == first
    Lease(tmp_path / "gone" / "lease", 1.0).renew()  # nothing to write to: no error


def test_the_hosts_that_could_not_be_cleared_are_told(tmp_path):
    class Fake:
        def run(self, commands, timeout_s):
            self.asked = {host: argv[-5:] for host, argv in commands.items()}
            return {host: Answer(host, code, "", "") for host, code in {"a": 0, "b": None, "c": 1}.items()}

    remote = Fake()
    assert sweep_hosts(["a", "b", "c"], tmp_path, remote) == ["b", "c"]
    words = ("-m", "vpred_train.entry", "launcher.processes.sweep", "--run-dir", str(tmp_path))
    assert remote.asked == dict.fromkeys("abc", words)


def test_sweep_kills_the_ranks_of_its_run_alone(tmp_path):
    def stray(run_dir: Path) -> subprocess.Popen:
        argv = [sys.executable, "-c", "import time; time.sleep(60)", "--run-dir", str(run_dir), "--attempt", "3"]
        return subprocess.Popen(argv)

    ours, other = stray(tmp_path / "ours"), stray(tmp_path / "other")
    try:
        assert sweep_hosts(["localhost"], tmp_path / "ours", Ssh()) == []
        assert ours.wait(timeout=60) == -signal.SIGKILL
        assert other.poll() is None
        assert workers_of(tmp_path / "other") == [other.pid]
    finally:
        other.kill()
        other.wait()


def test_a_killed_rank_is_followed_by_an_attempt_that_goes_on(bench):
    result = bench.launch("fault=kill", "fault_attempts=1", *RESTART)
    assert result.returncode == ExitCode.OK, result.stderr
    assert "ended with SIGKILL after step 3; restart 1 of 2 from step 2 in 0.1 s" in result.stderr
    assert "2 attempts; not trained in" in result.stderr
    first, second = read_records(bench.run)
    assert (first.exit_code, first.host, first.last_step, first.checkpoint_step) == (137, "localhost", 3, 2)
    assert (second.exit_code, second.resumed_step, second.last_step) == (0, 2, 6)
    assert json.loads(bench.run.plan_json.read_text())["attempt"] == 2
    assert bench.run.attempt(2).lease.exists()
    lost = second.lost
    assert lost.detection_s > 0 and lost.delay_s >= 0.1 and lost.start_s > 0
    assert lost.rollback_s == pytest.approx(first.step_s)
    assert bench.workers() == []

    families = {each.name: each for each in text_string_to_metric_families(bench.run.launcher_prom.read_text())}
    assert [(each.labels, each.value) for each in families["vpred_launcher_failures"].samples] == [
        ({"run": "run", "host": "localhost"}, 1.0),
        ({"run": "run", "host": "unknown"}, 0.0),
    ]
    causes = {each.labels["cause"]: each.value for each in families["vpred_launcher_lost_seconds"].samples}
    assert causes == pytest.approx(
        {name: getattr(first.lost, f"{name}_s") + getattr(lost, f"{name}_s") for name in causes}
    )
    assert families["vpred_launcher_attempt"].samples[0].value == 2
    assert families["vpred_launcher_attempt_running"].samples[0].value == 0


def test_a_checkpoint_counts_though_no_rank_lived_to_tell_of_it(bench):
    result = bench.launch("fault=kill", "save_every=3", *RESTART, "cluster.restart.max_without_progress=1")
    assert result.returncode == ExitCode.OK, result.stderr
    assert "ended with SIGKILL after step 3; restart 1 of 2 from step 3 in 0.1 s" in result.stderr
    assert {RankStatus.read(bench.run.attempt(1).status(rank)).checkpoint_step for rank in (0, 1)} == {None}
    assert [(each.resumed_step, each.checkpoint_step) for each in read_records(bench.run)] == [(0, 3), (3, 6)]


def test_a_killed_mpirun_is_followed_by_an_attempt_that_goes_on(bench):
    launcher = bench.start_training("steps=75", "step_s=0.02", *RESTART)
    os.kill(bench.child_of(launcher.pid), signal.SIGKILL)
    _, stderr = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == ExitCode.OK, stderr
    first, second = read_records(bench.run)
    assert "left no outcome file" in first.text
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert second.resumed_step == first.checkpoint_step > 0
    assert bench.workers() == []


@pytest.mark.skipif(NO_MOUNTS is not None, reason=str(NO_MOUNTS))
@pytest.mark.parametrize(
    ("restarts", "code", "words"),
    [
        (0, ExitCode.FAILED, "remedy: is the host up, the run directory shared and not full?"),
        # Nothing of a second attempt can be written: the operator's turn.
        (1, ExitCode.BAD_CONFIG, "run: cannot be written (No space left on device); free some space or give another"),
    ],
)
def test_a_disk_that_fills_up_does_not_silence_the_verdict(bench, restarts, code, words):
    small = bench.root / "small"
    small.mkdir()
    options = [f"cluster.restart.max_restarts={restarts}", "cluster.restart.first_delay_s=0.1"]
    launch = bench.argv("run", "fault=fill", "cluster.preflight.min_free_disk_bytes=0", *options)
    # Seen by these processes alone, and gone with them.
    mount = ["unshare", "--mount", "sh", "-c", 'mount -t tmpfs -o size=512k tmpfs "$0" && exec "$@"', str(small)]
    answer = subprocess.run(
        [*mount, *launch, "--run-dir", str(small / "run")],
        capture_output=True, text=True, timeout=DEADLINE_S, env=bench.env, cwd=bench.root, check=False,
    )  # fmt: skip
    assert answer.returncode == code, answer.stderr
    assert "left no outcome file after step 3" in answer.stderr
    assert "failure.json: cannot be written (No space left on device)" in answer.stderr
    assert words in answer.stderr
    assert "Traceback" not in answer.stderr
    assert workers_of(small / "run") == []


def test_the_budget_ends_and_the_last_failure_is_told(bench):
    result = bench.launch("fault=raise", *RESTART)
    assert result.returncode == ExitCode.FAILED
    assert "restart 2 of 2 from step 2 in" in result.stderr  # it left no newer checkpoint than it began with
    assert "not started again: all 2 restarts are used up" in result.stderr
    assert bench.run.last_attempt() == 3
    assert "ValueError: a tensor went missing" in result.stderr
    assert bench.workers() == []


def test_ranks_end_themselves_when_the_launcher_shows_no_life(bench):
    """Stopped rather than killed: nobody's death tells the ranks."""
    launcher = bench.start_training("cluster.launcher.lease_s=4")
    launcher.send_signal(signal.SIGSTOP)
    bench.wait_until(lambda: bench.workers() == [])
    launcher.send_signal(signal.SIGCONT)
    _, stderr = launcher.communicate(timeout=DEADLINE_S)
    assert launcher.returncode == 128 + signal.SIGTERM, stderr
    assert "no sign of life of the launcher for launcher.lease_s" in stderr
