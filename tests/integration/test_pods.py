"""`vpred-launch pod` in two pods: complete runs, pods that are stopped, drained, killed and made again."""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.contract.run_dir import RankStatus, RunDir, Summary
from launcher.records.attempt_record import read_records
from support import PROGRAMS
from support.hosts import unavailable
from support.jobs import SMALL_RECIPE, losses
from support.pods import RUNS, USER, Pods

DEADLINE_S = 240
CLUSTER = """
name: pods
accelerator: cpu
workers_per_host: 1
launcher: {lease_s: 4}
metrics: {address: 0.0.0.0}
network: {join_timeout_s: 60}
restart: {max_restarts: 2, first_delay_s: 0.1}
submit: {scheduler: kubernetes, nodes: 2, kubernetes: {image: "vpred:1"}}
"""


pytestmark = [pytest.mark.hosts, pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))]


class Job:
    """A run in two pods, with the fake trainer or the real one."""

    def __init__(self, pods: Pods) -> None:
        self.pods, self.run = pods, RunDir(pods.runs / "mine")
        self.program = [sys.executable, "-P", str(PROGRAMS / "fake_launch.py")]

    def start(self, recipe: str = "steps: 60\nstep_s: 0.05\n") -> None:
        self.pods.write_documents(CLUSTER, recipe)
        for index in (0, 1):
            self.start_pod(index)

    def start_pod(self, index: int) -> None:
        argv = [*self.program, "pod", "--index", str(index), "--run-dir", str(RUNS / "mine")]
        argv += ["--cluster", "/etc/vpred/cluster.yaml", "--recipe", "/etc/vpred/recipe.yaml"]
        setattr(self, f"pod_{index}", self.pods.start(index, argv))

    def await_checkpoint(self, attempt: int) -> None:
        """Return when both ranks of this attempt have made a checkpoint."""
        files = [self.run.attempt(attempt).status(rank) for rank in (0, 1)]

        def both_have() -> bool:
            found = [RankStatus.read(file) for file in files]
            return all(each is not None and (each.checkpoint_step or 0) > (each.resumed_step or 0) for each in found)

        self.wait_until(both_have)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + DEADLINE_S
        while not condition():
            assert self.pod_0.poll() is None, self.pod_0.communicate()[0]
            assert time.monotonic() < deadline_s, "waited too long"
            time.sleep(0.05)

    def end(self) -> tuple[int, int, str]:
        """Exit codes of both pods and their output."""
        outputs = [pod.communicate(timeout=DEADLINE_S)[0] for pod in (self.pod_0, self.pod_1)]
        return self.pod_0.returncode, self.pod_1.returncode, "\n--- pod 1 ---\n".join(outputs)


@pytest.fixture
def job(tmp_path: Path) -> Iterator[Job]:
    with Pods(2, tmp_path) as pods:
        yield Job(pods)


def test_pods_train_to_the_end_and_both_end_with_success(job: Job) -> None:
    job.start("steps: 6\n")
    first, second, output = job.end()
    assert (first, second) == (0, 0), output
    summary = Summary.read(job.run.summary_json)
    assert summary is not None and summary.steps == 6
    assert [record.hosts for record in read_records(job.run)] == [
        ("vpred-mine-0.vpred-mine", "vpred-mine-1.vpred-mine")
    ]
    assert job.run.summary_json.stat().st_uid == USER


def test_pods_that_all_stop_at_once_leave_a_checkpoint_and_resume(job: Job) -> None:
    job.start()
    job.await_checkpoint(1)
    job.pods.terminate(0, 1)
    first, second, output = job.end()
    assert (first, second) == (75, 75), output
    assert "checkpoint saved; the same command resumes" in output
    stopped = read_records(job.run)[-1]
    assert Summary.read(job.run.summary_json) is None
    job.start()
    assert job.end()[:2] == (0, 0)
    assert read_records(job.run)[-1].resumed_step == stopped.checkpoint_step > 0


def test_one_drained_pod_stops_the_run_with_a_checkpoint(job: Job) -> None:
    job.start()
    job.await_checkpoint(1)
    job.pods.terminate(1)
    first, second, output = job.end()
    assert (first, second) == (75, 75), output
    assert "checkpoint saved" in output


def test_a_worker_pod_that_is_killed_and_made_again_gets_its_rank_back(job: Job) -> None:
    job.start("steps: 80\nstep_s: 0.1\n")
    job.await_checkpoint(1)
    job.pods.kill(1)
    job.start_pod(1)
    first, second, output = job.end()
    assert (first, second) == (0, 0), output
    records = read_records(job.run)
    assert len(records) == 2 and records[1].resumed_step > 0, output


def test_a_pod_that_is_stopped_while_it_waits_for_the_others_ends_at_once(job: Job) -> None:
    job.pods.write_documents(CLUSTER, "steps: 6\n")
    job.start_pod(0)
    job.wait_until(lambda: any("sshd" in line for line in job.pods.processes(0).values()))
    job.pods.terminate(0)
    output = job.pod_0.communicate(timeout=DEADLINE_S)[0]
    assert job.pod_0.returncode == 75, output
    assert not job.run.root.exists()


def test_a_pod_whose_peers_never_come_names_them(job: Job) -> None:
    job.pods.write_documents(CLUSTER.replace("join_timeout_s: 60", "join_timeout_s: 1"), "steps: 6\n")
    job.start_pod(0)
    output = job.pod_0.communicate(timeout=DEADLINE_S)[0]
    assert job.pod_0.returncode == 1
    assert output == (
        "waiting for 2 pods\nno sshd answers within 1 s (network.join_timeout_s): vpred-mine-1.vpred-mine\n"
    )


def test_a_pod_whose_sshd_cannot_start_says_why_and_does_not_wait(job: Job) -> None:
    job.pods.write_documents(CLUSTER, "steps: 6\n")
    job.pods.remove_key("host_ed25519")
    for index in (0, 1):
        job.start_pod(index)
    first, second, output = job.end()
    assert (first, second) == (1, 1)
    assert output.count("sshd: no hostkeys available -- exiting.") == 2
    assert output.count("/usr/sbin/sshd ended (exit code 1); its words are above\n") == 2


def test_wrong_input_ends_the_launching_pod_with_2(job: Job) -> None:
    job.start("steps: 6\nnonsense: 1\n")
    output = job.pod_0.communicate(timeout=DEADLINE_S)[0]
    assert job.pod_0.returncode == 2 and "nonsense: unknown key" in output
    assert job.pod_1.poll() is None  # Kubernetes ends it with the job
    job.pods.terminate(1)
    job.pod_1.communicate(timeout=DEADLINE_S)
    assert job.pod_1.returncode == 75


def test_the_real_trainer_keeps_its_checkpoint_when_all_pods_stop(job: Job) -> None:
    job.program = [str(Path(sys.executable).with_name("vpred-launch"))]
    job.start(SMALL_RECIPE.replace("total_samples: 16", "total_samples: 4000"))
    job.await_checkpoint(1)
    job.pods.terminate(0, 1)
    first, second, output = job.end()
    assert (first, second) == (75, 75), output
    assert job.run.committed_step() == len(losses(job.run.root)) > 0
