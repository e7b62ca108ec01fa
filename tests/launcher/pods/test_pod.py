"""`vpred-launch pod` before it has an sshd: what it refuses, and what it forgets. tests/integration has the rest."""

from pathlib import Path

import pytest

from launcher.cli import main
from launcher.contract.environment import environment
from support.manifests import CONFIGS, CPU


def pod(*more: str, cluster: str = CPU) -> list[str]:
    options = [
        "--index",
        "0",
        "--cluster",
        str(CONFIGS / f"{cluster}.yaml"),
        "--recipe",
        "r.yaml",
        "--run-dir",
        "/runs/x",
    ]
    return ["pod", *options, *more]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (pod("seed=1"), "found 'seed=1' (a pod takes both documents as they are)"),
        (pod(cluster="local_cpu"), f"{CONFIGS}/local_cpu.yaml: submit.scheduler: must be kubernetes for a pod"),
        (pod(cluster="slurm_cpu_2x1"), f"{CONFIGS}/slurm_cpu_2x1.yaml: submit.scheduler: must be kubernetes for a pod"),
        (pod(cluster="none"), f"{CONFIGS}/none.yaml: cannot be read (No such file or directory)"),
    ],
)
def test_what_is_no_pods_document_is_refused(capsys: pytest.CaptureFixture[str], argv: list[str], message: str) -> None:
    assert main(argv) == 2
    assert capsys.readouterr().err == f"{message}\n"


def test_a_pod_without_sshd_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("launcher.pods.pod._SSHD", str(tmp_path / "sshd"))
    assert main(pod()) == 2
    assert capsys.readouterr().err == f"{tmp_path}/sshd: found none; install openssh-server into the image\n"


def test_a_pod_forgets_the_identity_that_an_operator_gave_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """MindCluster's operator sets msrun's variables in each pod of an AscendJob, Volcano's and others their own."""
    monkeypatch.setattr("launcher.pods.pod._SSHD", str(tmp_path / "sshd"))
    given = {"MS_ROLE": "MS_SCHED", "MS_WORKER_NUM": "16", "MS_SCHED_HOST": "10.0.0.1", "RANK_TABLE_FILE": "/x.json"}
    for name, value in {**given, "ASCEND_VISIBLE_DEVICES": "0,1", "OMPI_MCA_btl": "self"}.items():
        monkeypatch.setenv(name, value)
    main(pod())
    kept = environment()
    assert not given.keys() & kept.keys()
    assert kept["ASCEND_VISIBLE_DEVICES"] == "0,1" and kept["OMPI_MCA_btl"] == "self"
