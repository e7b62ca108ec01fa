"""Runs in a real Slurm of three nodes without sshd: every way in which a job can end, and what follows.

The fake trainer trains, but for the first test. Jobs take nodes of their own, so that several can run at once.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from launcher.contract.run_dir import RankStatus, RunDir, Summary
from launcher.records.attempt_record import AttemptRecord, read_records
from launcher.submit.submitted import read_submitted
from support import CHECKOUT, PROGRAMS
from support.jobs import SMALL_RECIPE
from support.slurm import Slurm, unavailable

pytestmark = [pytest.mark.long, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]

FAKE = [sys.executable, "-P", str(PROGRAMS / "fake_launch.py")]
REAL = [str(Path(sys.executable).with_name("vpred-launch"))]
PREEMPTED, DIVERGED, BAD_CONFIG = 75, 76, 2
CLUSTER = """
name: queue
accelerator: cpu
workers_per_host: 1
launcher: {kind: srun, lease_s: 4, stop_grace_s: 40}
network: {interface: eth0}
metrics: {address: "::"}
restart: {max_restarts: 0, first_delay_s: 0.1}
submit: {nodes: 2}
"""
LONG = {"steps": 100_000, "step_s": 0.1, "saves_on_stop": True}


class Site:
    """The login host's user: commands, and what they leave in a folder."""

    def __init__(self, slurm: Slurm, folder: Path) -> None:
        self.slurm, self.folder = slurm, folder
        (folder / "cluster.yaml").write_text(CLUSTER)

    def launch(self, *words: str, program: Sequence[str] = FAKE) -> subprocess.CompletedProcess[str]:
        return self.slurm.run([*program, *words], timeout_s=300, PYTHONPATH=str(CHECKOUT))

    def words(self, name: str, recipe: dict[str, object] | str, *words: str) -> list[str]:
        """The arguments of `submit` for a run called `name`."""
        path = self.folder / f"{name}.yaml"
        path.write_text(recipe if isinstance(recipe, str) else json.dumps(recipe))
        documents = ["--cluster", str(self.folder / "cluster.yaml"), "--recipe", str(path)]
        return ["submit", *documents, "--run-dir", str(self.folder / name), *words]

    def submit(
        self, name: str, recipe: dict[str, object] | str, *words: str, program: Sequence[str] = FAKE
    ) -> tuple[RunDir, str]:
        answer = self.launch(*self.words(name, recipe, *words), program=program)
        assert answer.returncode == 0, answer.stderr
        *ids, root = answer.stdout.split()
        return RunDir(Path(root)), ids[-1]

    def state(self, job_id: str) -> str:
        return self.slurm.job(job_id, "JobState")[0]

    def await_state(self, job_id: str, *states: str) -> None:
        self.slurm.wait_until(lambda: self.state(job_id) in states)

    def await_training(self, run: RunDir, attempt: int = 1, after_step: int = 0) -> None:
        """Return when rank 0 of this attempt has trained and a checkpoint lies behind it."""

        def trains() -> bool:
            status = RankStatus.read(run.attempt(attempt).status(0))
            return status is not None and status.step > after_step and (status.checkpoint_step or 0) > 0

        self.slurm.wait_until(trains)

    def signal(self, job_id: str, name: str) -> None:
        """To the batch script alone, as Slurm does before a time limit."""
        answer = self.slurm.run(["scancel", f"--signal={name}", "--batch", job_id])
        assert answer.returncode == 0, answer.stderr

    def output(self, run: RunDir) -> str:
        return self.launch("logs", str(run.root), "--launcher").stdout

    def forget(self, *runs: RunDir) -> None:
        """Free the nodes."""
        for run in runs:
            self.launch("cancel", str(run.root), "--now")
        self.slurm.wait_until(lambda: set(self.slurm.states().values()) == {"idle"})


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    with Slurm(3) as made:
        yield made


@pytest.fixture
def site(slurm: Slurm, tmp_path: Path) -> Site:
    return Site(slurm, tmp_path)


@pytest.fixture(scope="module")
def limited(slurm: Slurm, tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, RunDir, str]:
    """A job of one node with a time limit, which takes its time while other tests run on the other two nodes."""
    site = Site(slurm, tmp_path_factory.mktemp("limited"))
    limit = ["cluster.submit.nodes=1", 'cluster.submit.slurm.time="2"', "cluster.submit.slurm.lead_s=60"]
    return site, *site.submit("limited", LONG, *limit)


def resumed_in_time(run: RunDir) -> tuple[AttemptRecord, AttemptRecord]:
    """The first two attempts: the second has gone on where the first was stopped, with nothing lost."""
    first, second, *_ = read_records(run)
    assert first.exit_code == PREEMPTED and "checkpoint saved" in first.text
    assert second.resumed_step == first.checkpoint_step == read_submitted(run).checkpoint_step > 0
    return first, second


def test_a_real_run_is_cancelled_and_completes_without_sshd(site: Site) -> None:
    assert not any(site.slurm.hosts.processes(host, "sshd") for host in site.slurm.hosts.names)
    recipe = SMALL_RECIPE.replace("total_samples: 16", "total_samples: 640")
    run, first = site.submit("real", recipe, program=REAL)
    site.slurm.wait_until(lambda: (status := RankStatus.read(run.attempt(1).status(0))) and status.step > 4, 240)
    assert site.launch("cancel", str(run.root), program=REAL).returncode == 0
    site.await_state(first, "FAILED")
    assert site.slurm.job(first, "ExitCode") == ["75:0"]
    (stopped,) = read_records(run)
    assert "checkpoint saved" in stopped.text and stopped.checkpoint_step > 4
    answer = site.launch(*site.words("real", recipe, "--wait"), program=REAL)
    assert answer.returncode == 0, f"{answer.stderr}\n{site.output(run)}"
    assert Summary.read(run.summary_json) is not None
    _, ended = read_records(run)
    assert ended.resumed_step == stopped.checkpoint_step and ended.hosts == ("h1", "h2")
    again = site.launch(*site.words("real", recipe), program=REAL)
    assert again.returncode == 0 and "already complete" in again.stdout


def test_a_signal_in_the_preflight_puts_the_job_back_into_the_queue(site: Site, limited: object) -> None:
    run, job_id = site.submit("early", LONG)
    site.slurm.wait_until(lambda: "begun" in site.output(run))
    site.signal(job_id, "USR1")
    site.slurm.wait_until(lambda: read_submitted(run).requeues == 1)
    assert run.last_attempt() == 0
    site.await_training(run)  # after the requeue
    assert "stopped before the ranks were started" in site.output(run)
    site.signal(job_id, "USR2")  # a checkpoint, and it goes on
    site.slurm.wait_until(lambda: "asked the ranks for a checkpoint" in site.output(run))
    saved = run.committed_step()
    site.await_training(run, after_step=saved + 10)
    # What Slurm sends for one reason, within a second, is one request: the checkpoint is waited for.
    for name in ("TERM", "HUP", "USR1", "TERM"):
        site.signal(job_id, name)
    site.slurm.wait_until(lambda: read_submitted(run).requeues == 2)
    site.await_training(run, attempt=2)
    resumed_in_time(run)
    assert site.output(run).count("begun") == 3
    state = json.loads(site.launch("status", str(run.root), "--json").stdout)
    assert (state["state"], state["job"]["state"], state["job"]["restarts"]) == ("running", "RUNNING", 2)
    site.launch("cancel", str(run.root), "--now")
    site.await_state(job_id, "CANCELLED", "FAILED")


def test_cancelled_runs_stay_cancelled(site: Site, limited: object) -> None:
    never = site.launch("cancel", str(site.folder / "never"))
    assert never.returncode == BAD_CONFIG and never.stderr.count("\n") == 1 and "was never submitted" in never.stderr
    run, running = site.submit("running", LONG)
    twice = site.launch(*site.words("running", LONG))
    assert twice.returncode == BAD_CONFIG and f"job {running} is " in twice.stderr and "cancel" in twice.stderr
    waiting_run, waiting = site.submit("waiting", LONG)
    assert f"slurm {waiting}: PENDING" in site.launch("status", str(waiting_run.root)).stdout
    said = site.launch("cancel", str(waiting_run.root)).stdout
    assert f"job {waiting} was cancelled" in said and site.state(waiting) == "CANCELLED"
    site.await_training(run)
    said = site.launch("cancel", str(run.root)).stdout
    assert f"job {running} was asked to stop with a checkpoint" in said
    site.await_state(running, "FAILED")
    assert site.slurm.job(running, "ExitCode", "Restarts") == ["75:0", "0"]
    (record,) = read_records(run)
    assert "checkpoint saved" in record.text
    assert "no job to cancel" in site.launch("cancel", str(run.root)).stdout
    # By Slurm's own command: the ranks have KillWait for their checkpoint.
    run, other = site.submit("other", LONG)
    site.await_training(run)
    assert site.slurm.run(["scancel", other]).returncode == 0
    site.await_state(other, "CANCELLED")
    (record,) = read_records(run)
    assert record.exit_code == PREEMPTED and "checkpoint saved" in record.text
    assert f"job {other}: the scheduler ends the job" in site.output(run)
    time.sleep(10)  # a requeued job would begin after 6 s
    for job_id in (running, waiting, other):
        assert site.state(job_id) in ("CANCELLED", "FAILED")
        assert site.slurm.job(job_id, "Restarts") == ["0"]


def test_ends_that_no_retry_helps_are_ends(site: Site, limited: object) -> None:
    one = "cluster.submit.nodes=1"
    wrong, wrong_id = site.submit("wrong", LONG, one, "cluster.preflight.min_free_disk_bytes=1000000000000000")
    diverged, diverged_id = site.submit("diverged", {"fault": "exit", "fault_rank": 0}, one)
    vain = {"fault": "raise", "fault_rank": 0, "save_every": 0}
    failed, failed_id = site.submit("failed", vain, one, "cluster.restart.max_restarts=8")
    for job_id, run, code, attempts in (
        (wrong_id, wrong, BAD_CONFIG, 0),
        (diverged_id, diverged, DIVERGED, 1),
        (failed_id, failed, 1, 3),
    ):
        site.await_state(job_id, "FAILED")
        assert site.slurm.job(job_id, "ExitCode", "Restarts") == [f"{code}:0", "0"]
        assert read_submitted(run).exit_code == code and run.last_attempt() == attempts
    after = site.launch(*site.words("after", LONG, "--after", str(failed.root)))
    assert after.returncode == BAD_CONFIG and f"job {failed_id} has ended: FAILED" in after.stderr


def test_sweeps_chains_and_jobs_after_others(site: Site, limited: object) -> None:
    one = "cluster.submit.nodes=1"
    short = {"steps": 5, "step_s": 0.1, "saves_on_stop": True}
    sweep = ["--sweep", "steps=5,6", "--sweep", "save_every=2,3", "cluster.submit.slurm.max_running=2"]
    swept, array = site.submit("swept", short, one, *sweep)
    later, later_id = site.submit("later", short, one, "--after", array)
    chain, last = site.submit("chain", LONG, one, "--chain", "3", f"cluster.submit.slurm.dependency=afterany:{array}")
    assert site.slurm.run(["squeue", "-h", "-o", "%T", "-n", "vpred-swept"]).stdout.count("RUNNING") <= 2
    doomed, doomed_id = site.submit("doomed", short, one, "--after", last)
    site.slurm.wait_until(lambda: Summary.read(RunDir(swept.root / "0003").summary_json) is not None)
    for number, (steps, save_every) in enumerate(((5, 2), (5, 3), (6, 2), (6, 3))):
        run = RunDir(swept.root / f"{number:04d}")
        recipe = run.train_yaml.read_text()
        assert f"steps: {steps}\n" in recipe and f"save_every: {save_every}\n" in recipe
        assert read_submitted(run).job_ids == (f"{array}_{number}",)
        assert "begun" in site.output(run)
    site.slurm.wait_until(lambda: Summary.read(later.summary_json) is not None)
    # The first job of the chain stops, the second goes on, the user has enough of it.
    ids = read_submitted(chain).job_ids
    assert len(ids) == 3 and ids[-1] == last
    site.await_training(chain)
    site.signal(ids[0], "USR1")
    site.await_training(chain, attempt=2)
    first, second = read_records(chain)
    assert second.resumed_step == first.checkpoint_step > 0
    assert site.slurm.job(ids[0], "JobState", "Restarts") == ["FAILED", "0"]
    site.launch("cancel", str(chain.root))
    site.await_state(ids[1], "FAILED")
    assert site.state(ids[2]) == site.state(doomed_id) == "CANCELLED"
    assert not doomed.attempts.exists() and later_id in read_submitted(later).job_ids


def test_a_run_past_its_time_limit_goes_on_by_itself(limited: tuple[Site, RunDir, str]) -> None:
    site, run, job_id = limited
    site.slurm.wait_until(lambda: run.last_attempt() == 2, 150)
    site.await_training(run, attempt=2)
    resumed_in_time(run)
    assert site.output(run).count(f"job {job_id}: begun") == 2
    site.forget(run)


def test_a_preempted_run_goes_on_when_its_nodes_are_free(site: Site) -> None:
    run, job_id = site.submit("preempted", LONG)
    site.await_training(run)
    urgent = ["sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 6"]
    assert site.slurm.run(urgent).returncode == 0
    site.await_training(run, attempt=2)
    resumed_in_time(run)
    # Where the site refuses to requeue a job, another one goes on.
    assert site.slurm.run(["scontrol", "update", f"jobid={job_id}", "Requeue=0"]).returncode == 0
    site.signal(job_id, "USR1")
    site.await_training(run, attempt=3)
    ids = read_submitted(run).job_ids
    assert ids[0] == job_id and len(ids) == 2 and site.state(job_id) == "FAILED"
    assert read_records(run)[2].resumed_step == read_records(run)[1].checkpoint_step
    site.forget(run)


@pytest.mark.parametrize("kind", ["srun", "mpirun"])
def test_a_preempted_job_is_requeued_whatever_it_does(site: Site, kind: str) -> None:
    """In its preflight, or where SIGTERM ends the ranks without a checkpoint."""
    how = [f"cluster.launcher.kind={kind}", "cluster.launcher.allow_run_as_root=true"]
    run, job_id = site.submit(kind, LONG, *how)
    site.slurm.wait_until(lambda: run.last_attempt() if kind == "mpirun" else "begun" in site.output(run))
    urgent = ["sbatch", "--partition=urgent", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=true"]
    assert site.slurm.run(urgent).returncode == 0
    # Where no step runs yet nobody hears of it, and Slurm requeues the job by itself after the partition's grace time.
    site.slurm.wait_until(lambda: site.slurm.job(job_id, "Restarts") == ["1"])
    assert read_submitted(run).requeues <= 1
    attempts = run.last_attempt()
    site.await_training(run, attempt=attempts + 1)
    site.forget(run)


def test_a_run_goes_on_without_lost_nodes(site: Site) -> None:
    """First a spare node takes the place of a lost one, then fewer ranks go on."""
    spare = ["cluster.submit.spare_nodes=1", "cluster.restart.shrink=true", "cluster.restart.max_restarts=4"]
    run, job_id = site.submit("lost", LONG, *spare)
    site.await_training(run)
    site.slurm.crash("h2")
    site.await_training(run, attempt=2)
    site.slurm.crash("h3")
    site.await_training(run, attempt=3)
    records = read_records(run)
    assert [record.hosts for record in records] == [("h1", "h2"), ("h1", "h3"), ("h1",)]
    assert [record.host for record in records] == ["h2", "h3", None]
    assert all(after.resumed_step == before.checkpoint_step > 0 for before, after in pairwise(records))
    assert site.slurm.job(job_id, "JobState", "Restarts") == ["RUNNING", "0"]
    for node in ("h2", "h3"):
        site.slurm.boot(node)
    site.forget(run)


def test_a_job_with_too_few_nodes_left_is_requeued(site: Site) -> None:
    """A lost worker's node: by the launcher. The launcher's own node: by Slurm."""
    run, _ = site.submit("short", LONG)
    site.await_training(run)
    site.slurm.crash("h2")
    site.await_training(run, attempt=2)
    assert read_submitted(run).requeues == 1 and "hosts were lost" in site.output(run)
    site.slurm.crash("h1")
    site.slurm.boot("h2")
    site.await_training(run, attempt=3)
    records = read_records(run)
    assert [record.hosts for record in records] == [("h1", "h2"), ("h1", "h3"), ("h2", "h3")]
    assert records[0].host == "h2" and records[2].resumed_step >= records[1].resumed_step > 0
    site.slurm.boot("h1")
    site.forget(run)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("cluster.submit.slurm.partition=nope", "submit.slurm.partition: found 'nope'; sbatch: invalid partition"),
        ("cluster.submit.slurm.gres=gpu:1", "submit.slurm.gres: found 'gpu:1'; sbatch: Invalid generic resource"),
        ("cluster.submit.nodes=9", "submit.nodes: found '9'; sbatch: Requested node configuration is not available"),
        ("cluster.submit.slurm.constraint=fast", "submit.slurm.constraint: found 'fast'; sbatch: Invalid feature"),
        ("cluster.submit.slurm.reservation=ours", "submit.slurm.reservation: found 'ours'; sbatch: Requested reser"),
        ("cluster.submit.slurm.mem=lots", "submit.slurm.mem: found 'lots'; sbatch: Invalid --mem"),
        ("cluster.submit.slurm.dependency=soon:1", "submit.slurm.dependency: found 'soon:1'; sbatch: Job dependency"),
        (
            'cluster.submit.slurm.arguments=["--bogus=1"]',
            "submit.slurm.arguments: found \"('--bogus=1',)\"; sbatch: unrec",
        ),
    ],
)
def test_what_slurm_refuses_is_one_line_and_writes_nothing(site: Site, override: str, words: str) -> None:
    answer = site.launch(*site.words("refused", LONG, override))
    assert answer.returncode == BAD_CONFIG and answer.stdout == ""
    assert answer.stderr.startswith(words) and answer.stderr.count("\n") == 1, answer.stderr
    assert not (site.folder / "refused").exists()


def test_an_allocation_of_a_person_is_used_and_checked(site: Site) -> None:
    documents = site.words("by_hand", {"steps": 5})[1:]
    run = ["salloc", "--quiet", "--nodes=2", *FAKE, "run", *documents]
    answer = site.slurm.run(run, 120, PYTHONPATH=str(CHECKOUT))
    assert answer.returncode == 0, answer.stderr
    assert read_records(RunDir(site.folder / "by_hand"))[0].hosts == ("h1", "h2")
