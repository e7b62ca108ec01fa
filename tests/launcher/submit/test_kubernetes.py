"""`submit`, `status` and `cancel` on Kubernetes, with a stand-in for kubectl that records and answers.

No Kubernetes has seen these calls: there is none here. What is tested is which calls are made, in which order, what
they hand over, and what becomes of the answers.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from launcher.cli import main
from launcher.contract.run_dir import RunDir
from launcher.planning.trainer import Trainer
from launcher.submit.kubernetes import Kubernetes
from launcher.submit.pods import KEPT_OUT
from launcher.submit.workloads import KINDS
from support import PROGRAMS
from support.manifests import CONFIGS, CPU

TRAINER = Trainer((sys.executable, "-P", str(PROGRAMS / "fake_trainer.py")), (), ("mpi4py",), {})
NOT_FOUND = 'Error from server (NotFound): jobs.batch "vpred-mine" not found\n'
JOB = "default/job.batch/vpred-mine"
# Answers of a cluster that takes the job.
NAMESPACE = ["config view", 0, "", ""]
CLAIMS = ["get pvc/", 0, "ReadWriteMany", ""]
NO_JOB = ["get job", 1, "", NOT_FOUND]
DRY_RUN = ["create -f - --dry-run=server", 0, "", ""]
WORKLOAD = ["create -f - -o", 0, "uid-1", ""]
REST = ["create -f -$", 0, "", ""]
TAKES_IT = [NAMESPACE, CLAIMS, NO_JOB, DRY_RUN, WORKLOAD, REST]


class Cluster:
    """A stand-in on PATH, and the command line in front of it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.run = RunDir(folder / "mine")
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text("steps: 6\n")
        self.bin = folder / "bin"
        self.bin.mkdir()
        shutil.copy(PROGRAMS / "fake_kubectl.py", self.bin / "kubectl")
        (self.bin / "kubectl").chmod(0o755)
        self.answer(TAKES_IT)

    def answer(self, answers: list[list[Any]]) -> None:
        (self.bin / "answers.json").write_text(json.dumps(answers))

    @property
    def calls(self) -> list[dict[str, Any]]:
        file = self.bin / "calls.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def words(self) -> list[str]:
        """The calls without namespace and output format."""
        return [" ".join(call["argv"]).removeprefix("--namespace default ").split(" -o ")[0] for call in self.calls]

    def launch(self, *argv: str) -> tuple[int, str, str]:
        code = main(argv, TRAINER)
        captured = self._capsys.readouterr()
        return code, captured.out, captured.err

    def submit(self, *more: str) -> tuple[int, str, str]:
        options = (
            "--cluster",
            str(CONFIGS / f"{CPU}.yaml"),
            "--recipe",
            str(self.recipe),
            "--run-dir",
            str(self.run.root),
        )
        return self.launch("submit", *options, *more)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cluster:
    made = Cluster(tmp_path, capsys)
    monkeypatch.setenv("PATH", f"{made.bin}:/usr/bin:/bin")
    return made


def state(**fields: str) -> list[Any]:
    """An answer about the job."""
    names = ("suspend", "cancelled", "phase", "types", "reasons", "active", "failed")
    return [r"get \S+/vpred-mine -o", 0, "\t".join(fields.get(name, "") for name in names), ""]


def pods(*rows: str) -> list[Any]:
    return ["get pods", 0, "".join(f"{row}\n" for row in rows), ""]


def test_submit_checks_first_and_creates_the_workload_before_the_rest(cluster: Cluster) -> None:
    code, out, err = cluster.submit()
    assert (code, out) == (0, f"{JOB} {cluster.run.root}\n"), err
    assert cluster.words == [
        "config view --minify",
        "get pvc/vpred-runs",
        "get pvc/vpred-data",
        "create -f - --dry-run=server",
        "config view --minify",
        "get job.batch/vpred-mine",
        "create -f -",
        "create -f -",
    ]
    tried, job, rest = (json.loads(cluster.calls[number]["stdin"]) for number in (3, 6, 7))
    assert tried["items"][0]["metadata"]["name"] == "vpred-mine-check"
    assert (job["kind"], job["metadata"]["name"]) == ("Job", "vpred-mine")
    assert [each["kind"] for each in rest["items"]] == ["ConfigMap", "Secret", "Service", "NetworkPolicy"]
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "vpred-mine", "uid": "uid-1"}
    assert all(each["metadata"]["ownerReferences"] == [owner] for each in rest["items"])
    assert rest["items"][0]["data"]["recipe.yaml"] == cluster.run.submit.recipe_yaml.read_text()


def test_keys_reach_kubernetes_alone(cluster: Cluster) -> None:
    _, out, err = cluster.submit()
    (secret,) = [each for each in json.loads(cluster.calls[-1]["stdin"])["items"] if each["kind"] == "Secret"]
    keys = secret["stringData"]
    assert (
        keys["id_ed25519"].startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
        and keys["id_ed25519"] != keys["host_ed25519"]
    )
    assert keys["known_hosts"].startswith("* ssh-ed25519 ") and keys["authorized_keys"].startswith("ssh-ed25519 ")
    written = "".join(path.read_text() for path in cluster.run.root.rglob("*") if path.is_file())
    assert KEPT_OUT in written and "PRIVATE KEY" not in written + out + err


def test_each_submission_has_keys_of_its_own(cluster: Cluster) -> None:
    found = []
    for _ in range(2):
        cluster.submit()
        items = json.loads(cluster.calls[-1]["stdin"])["items"]
        found.append(next(each["stringData"]["id_ed25519"] for each in items if each["kind"] == "Secret"))
        shutil.rmtree(cluster.run.root)
    assert found[0] != found[1]


def test_a_dry_run_calls_nothing_and_writes_nothing(cluster: Cluster) -> None:
    code, out, _ = cluster.submit("--dry-run")
    assert code == 0 and "kind: NetworkPolicy" in out and "kubectl create -f -" in out
    assert cluster.calls == [] and not cluster.run.root.exists()


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        (
            [["config view", 1, "", "error: no context"]],
            "kubectl config: error: no context; correct what it names",
        ),
        (
            [NAMESPACE, ["pvc/vpred-runs", 1, "", "Error from server (NotFound): x\n"]],
            "submit.kubernetes.runs_claim: found 'vpred-runs', which namespace default does not have; create the claim",
        ),
        (
            [NAMESPACE, ["pvc/vpred-runs", 0, "ReadWriteOnce", ""]],
            "submit.kubernetes.runs_claim: found 'vpred-runs' with ReadWriteOnce (pods on several nodes cannot share "
            "it); take one with ReadWriteMany, or set submit.nodes: 1",
        ),
        (
            [NAMESPACE, ["pvc/vpred-data", 0, "ReadWriteOncePod", ""], CLAIMS],
            "submit.kubernetes.data_claims: found 'vpred-data' with ReadWriteOncePod (pods on several nodes cannot "
            "share it); take one with ReadWriteMany or ReadOnlyMany, or set submit.nodes: 1",
        ),
        (
            [NAMESPACE, CLAIMS, ["dry-run", 1, "", 'error: no matches for kind "Job" in version "batch.volcano.sh"\n']],
            "submit.kubernetes.workload: kubectl create: error: no matches for kind "
            '"Job" in version "batch.volcano.sh"; the cluster lacks its controller; take another workload',
        ),
        (
            [NAMESPACE, ["pvc", 1, "", "Unable to connect to the server: dial tcp: i/o timeout\n"]],
            "kubectl: kubectl get: Unable to connect to the server: dial tcp: i/o timeout; try `kubectl version`",
        ),
        (
            [NAMESPACE, CLAIMS, DRY_RUN, state(active="2"), pods("n1\t\t")],
            f"{JOB}: is Running already; wait for it, or `vpred-launch cancel` it first",
        ),
    ],
)
def test_refusals_are_one_line_and_change_nothing(cluster: Cluster, answers: list[list[Any]], message: str) -> None:
    cluster.answer(answers)
    code, out, err = cluster.submit()
    assert (code, out, err) == (2, "", f"{message}\n")
    assert not cluster.run.root.exists()


def test_without_kubectl_the_line_says_so(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    (cluster.bin / "kubectl").unlink()
    monkeypatch.setenv("PATH", str(cluster.bin))
    assert cluster.submit() == (2, "", "kubectl: found none on PATH; install it, or use a machine that has it\n")
    assert not cluster.run.root.exists()


def test_a_half_created_job_is_taken_back(cluster: Cluster) -> None:
    cluster.answer([["create -f -$", 1, "", 'Error: secrets "x" is forbidden\n'], ["delete", 0, "", ""], *TAKES_IT])
    code, _, err = cluster.submit()
    assert (code, err) == (
        2,
        'kubectl: kubectl create: Error: secrets "x" is forbidden; log in, or ask for the right to create jobs\n',
    )
    assert cluster.words[-1] == "delete job.batch/vpred-mine --wait=false"
    assert not cluster.run.root.exists()


@pytest.mark.parametrize("option", ["--after=7", "--chain=2", "--sweep=seed=1,2"])
def test_options_of_other_schedulers_are_refused(cluster: Cluster, option: str) -> None:
    code, _, err = cluster.submit(option)
    assert code == 2 and err.startswith(f"{option.partition('=')[0]}: remove it (Kubernetes has no order of jobs")
    assert cluster.calls == []


def test_a_second_submission_is_refused_while_the_first_is_there(cluster: Cluster) -> None:
    cluster.submit()
    cluster.answer([state(active="2"), pods("n1\t\t")])
    code, _, err = cluster.submit()
    assert code == 2 and f"job {JOB} is Running" in err


def test_a_job_that_has_ended_makes_room_for_the_next(cluster: Cluster) -> None:
    cluster.submit()
    before = len(cluster.calls)
    cluster.answer([state(types="Failed"), pods("n1\t1\t"), ["delete", 0, "", ""], *TAKES_IT])
    assert cluster.submit()[0] == 0
    deleted = [words for words in cluster.words[before:] if words.startswith("delete")]
    assert deleted == [
        "delete job.batch/vpred-mine --cascade=foreground --timeout=600s",
        "delete ConfigMap,Secret,Service,NetworkPolicy -l app.kubernetes.io/name=vpred,app.kubernetes.io/instance=mine",
    ]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([state(suspend="true"), pods()], ("pending", "Suspended", "", "", None)),
        (
            [state(), pods("\t\t0/3 nodes are available: 3 Insufficient cpu.")],
            ("pending", "Pending", "0/3 nodes are available: 3 Insufficient cpu.", "", None),
        ),
        ([state(active="2"), pods("n1\t\t", "n2\t\t", "n1\t\t")], ("running", "Running", "", "n1,n2", None)),
        ([state(active="2"), pods("n1\t\tImagePullBackOff")], ("running", "Running", "ImagePullBackOff", "n1", None)),
        (
            [state(types="SuccessCriteriaMet Complete", reasons="A CompletionsReached"), pods("n1\t0\t", "n2\t75\t")],
            ("ended", "Complete", "CompletionsReached", "n1,n2", 0),
        ),
        (
            [
                state(types="FailureTarget Failed", reasons="P PodFailurePolicy", failed="1"),
                pods("n2\t75\t", "n1\t2\t"),
            ],
            ("ended", "Failed", "PodFailurePolicy", "n2,n1", 2),
        ),
        (
            [state(types="Failed", reasons="BackoffLimitExceeded"), pods()],
            ("ended", "Failed", "BackoffLimitExceeded", "", 1),
        ),
        ([state(suspend="true", cancelled="true", active="1"), pods()], ("running", "Stopping", "", "", None)),
        ([state(suspend="true", cancelled="true", types="Suspended"), pods()], ("ended", "Cancelled", "", "", None)),
        ([state(suspend="true", cancelled="true", types="Running"), pods()], ("running", "Stopping", "", "", None)),
        ([state(phase="Running", cancelled="true"), pods()], ("running", "Stopping", "", "", None)),
        ([state(phase="Aborting", cancelled="true"), pods()], ("running", "Stopping", "", "", None)),
        ([state(phase="Aborted", cancelled="true"), pods()], ("ended", "Aborted", "", "", 1)),
        ([state(phase="Restarting", failed="3"), pods()], ("running", "Restarting", "", "", None)),
        ([state(types="Created Running", reasons="A B"), pods()], ("running", "Running", "B", "", None)),
    ],
)
def test_a_job_is_described_in_the_words_of_its_controller(
    cluster: Cluster, answers: list[list[Any]], expected: tuple[Any, ...]
) -> None:
    cluster.answer(answers)
    job = Kubernetes().query(JOB)
    assert job is not None
    assert (job.phase, job.state, job.reason, job.nodes, job.exit_code) == expected


def test_a_job_that_was_deleted_is_not_known(cluster: Cluster) -> None:
    cluster.answer([NO_JOB])
    assert Kubernetes().query(JOB) is None


def test_status_has_a_line_about_the_job(cluster: Cluster) -> None:
    cluster.submit()
    cluster.answer([state(active="2"), pods("n1\t\t", "n2\t\t")])
    code, out, err = cluster.launch("status", str(cluster.run.root))
    assert code == 0, err
    assert f"job         kubernetes {JOB}: Running, on n1,n2" in out
    cluster.answer([NO_JOB])
    assert "not known to Kubernetes any more" in cluster.launch("status", str(cluster.run.root))[1]


def cancelled(
    cluster: Cluster, workload: str, queue: str = "", phase: str = "running", now: bool = False
) -> list[dict[str, Any]]:
    """The calls that cancel a job."""
    found = [state(active="2") if phase == "running" else state(), pods("n1\t\t")]
    more = [
        [r"jsonpath=\{.metadata.uid\}", 0, f"uid-1\t{queue}", ""],
        ["workloads.kueue", 0, "workload.kueue.x-k8s.io/w\n", ""],
    ]
    cluster.answer([*more, *found, ["annotate|patch|delete|create", 0, "", ""]])
    scheduler = Kubernetes()
    job = scheduler.query(f"default/{KINDS[workload].resource}/vpred-mine")
    assert job is not None
    before = len(cluster.calls)
    scheduler.cancel(job, now=now)
    return cluster.calls[before:]


@pytest.mark.parametrize(
    ("workload", "patch"),
    [("job", {"spec": {"suspend": True}}), ("mpijob", {"spec": {"runPolicy": {"suspend": True}}})],
)
def test_cancel_suspends_a_job(cluster: Cluster, workload: str, patch: dict[str, Any]) -> None:
    annotate, _, suspend = cancelled(cluster, workload)
    what = f"{KINDS[workload].resource}/vpred-mine"
    assert annotate["argv"][2:] == ["annotate", "--overwrite", what, "vpred/cancelled=true"]
    assert suspend["argv"][2:6] == ["patch", what, "--type=merge", "-p"]
    assert json.loads(suspend["argv"][6]) == patch


def test_cancel_deactivates_the_workload_of_a_queue(cluster: Cluster) -> None:
    """Kueue would start a job again that somebody else suspends."""
    *_, names, patch = cancelled(cluster, "job", queue="research")
    assert "kueue.x-k8s.io/job-uid=uid-1" in names["argv"]
    assert patch["argv"][3] == "workload.kueue.x-k8s.io/w" and json.loads(patch["argv"][-1]) == {
        "spec": {"active": False}
    }


def test_cancel_aborts_a_job_of_volcano_by_its_command(cluster: Cluster) -> None:
    command = json.loads(cancelled(cluster, "volcano")[-1]["stdin"])
    assert (command["kind"], command["action"]) == ("Command", "AbortJob")
    assert (command["target"]["name"], command["target"]["uid"]) == ("vpred-mine", "uid-1")


@pytest.mark.parametrize(
    ("workload", "phase", "now", "words"),
    [
        ("ascendjob", "running", False, ["--wait=false"]),
        ("job", "pending", False, ["--wait=false"]),
        ("job", "running", True, ["--wait=false", "--grace-period=1"]),
    ],
)
def test_cancel_deletes_what_it_cannot_stop(
    cluster: Cluster, workload: str, phase: str, now: bool, words: list[str]
) -> None:
    (call,) = cancelled(cluster, workload, phase=phase, now=now)
    assert call["argv"][2:] == ["delete", f"{KINDS[workload].resource}/vpred-mine", *words]


def test_cancel_of_a_submitted_run_marks_it(cluster: Cluster) -> None:
    cluster.submit()
    uid = [r"jsonpath=\{.metadata.uid\}", 0, "uid-1\t", ""]
    cluster.answer([uid, state(active="2"), pods("n1\t\t"), ["annotate|patch", 0, "", ""]])
    code, out, _ = cluster.launch("cancel", str(cluster.run.root))
    assert (code, out) == (0, f"{cluster.run.root}: job {JOB} was asked to stop with a checkpoint\n")
    assert cluster.run.submit.cancelled.exists()
