"""The templates for kubectl's output, evaluated by the real kubectl on objects in files, and how it reads manifests.

No cluster is needed for that.
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.submit import kubernetes
from support.manifests import CASES, manifest, objects

pytestmark = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl on PATH")

CONDITIONS = [
    {"type": "Created", "status": "False", "reason": "No"},
    {"type": "Suspended", "status": "True", "reason": "JobSuspended"},
    {"type": "Running", "status": "True", "reason": "JobRunning"},
]


def evaluated(template: str, folder: Path, found: dict[str, Any]) -> str:
    """What kubectl prints about an object. `label --local` is a command that prints and asks no server."""
    (folder / "object.yaml").write_text(yaml.safe_dump(found))
    argv = ["kubectl", "label", "--local", "-f", str(folder / "object.yaml"), "any=label", "-o", f"jsonpath={template}"]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=folder)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


def an_object(api: str, kind: str, spec: dict[str, Any], status: dict[str, Any], **metadata: Any) -> dict[str, Any]:
    return {"apiVersion": api, "kind": kind, "metadata": {"name": "x", **metadata}, "spec": spec, "status": status}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (
            an_object(
                "batch/v1", "Job", {"suspend": True}, {"active": 2, "failed": 1, "conditions": CONDITIONS},
                annotations={"vpred/cancelled": "true"},
            ),
            ["true", "true", "", "Suspended Running", "JobSuspended JobRunning", "2", "1"],
        ),
        (an_object("batch/v1", "Job", {}, {}), ["", "", "", "", "", "", ""]),
        (
            an_object("kubeflow.org/v2beta1", "MPIJob", {"runPolicy": {"suspend": False}}, {"conditions": CONDITIONS}),
            ["false", "", "", "Suspended Running", "JobSuspended JobRunning", "", ""],
        ),
        (
            an_object(
                "batch.volcano.sh/v1alpha1", "Job", {},
                {"state": {"phase": "Restarting"}, "retryCount": 3, "conditions": [{"status": "Pending"}]},
            ),
            ["", "", "Restarting", "", "", "", "3"],
        ),
    ],
)  # fmt: skip
def test_one_template_fits_the_states_of_all_workloads(
    tmp_path: Path, found: dict[str, Any], expected: list[str]
) -> None:
    assert evaluated(kubernetes._STATE, tmp_path, found).split("\t") == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ({"containerStatuses": [{"name": "vpred", "state": {"terminated": {"exitCode": 75}}}]}, "n1\t75\t\n"),
        (
            {"containerStatuses": [{"name": "vpred", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "n1\t\tErrImagePull\n",
        ),
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "message": "0/3 nodes fit"}]},
            "n1\t\t0/3 nodes fit\n",
        ),
    ],
)
def test_the_template_for_pods_finds_node_exit_code_and_reason(
    tmp_path: Path, status: dict[str, Any], expected: str
) -> None:
    pod = an_object("v1", "Pod", {"nodeName": "n1", "containers": [{"name": "vpred", "image": "x"}]}, status)
    each = kubernetes._PODS.removeprefix("{range .items[*]}").removesuffix("{end}")
    assert evaluated(each, tmp_path, pod) == expected
    assert evaluated(kubernetes._PODS, tmp_path, pod) == ""  # it is no list


def test_the_queue_of_a_job_is_found(tmp_path: Path) -> None:
    job = an_object("batch/v1", "Job", {}, {}, labels={"kueue.x-k8s.io/queue-name": "research"})
    assert evaluated(kubernetes._QUEUE, tmp_path, job) == "research"


@pytest.mark.parametrize("case", CASES)
def test_kubectl_reads_the_manifest_as_it_was_rendered(tmp_path: Path, case: str) -> None:
    config, overrides = CASES[case]
    (tmp_path / "manifest.yaml").write_text(manifest(config, *overrides))
    argv = ["kubectl", "label", "--local", "-f", "manifest.yaml", "--overwrite", "any=label", "-o", "json"]
    answer = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert answer.returncode == 0, answer.stderr
    read = {(each["kind"], each["metadata"]["name"]): each for each in one_after_another(answer.stdout)}
    written = {(each["kind"], each["metadata"]["name"]): each for each in objects(case)}
    assert read.keys() == written.keys()
    assert all(holds(read[name], each) for name, each in written.items())


def one_after_another(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects in `text`, between which there is white space alone."""
    while text := text.lstrip():
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:]


def holds(read: Any, written: Any) -> bool:
    """Whether kubectl has read all that was written. It adds empty fields, such as status."""
    if isinstance(written, dict):
        return isinstance(read, dict) and all(key in read and holds(read[key], each) for key, each in written.items())
    if isinstance(written, list):
        return isinstance(read, list) and all(map(holds, read, written)) and len(read) == len(written)
    return bool(read == written)
