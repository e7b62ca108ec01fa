"""Finds what Kubernetes would refuse, or what would fail in the pods, before anything is submitted."""

import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import Any

from launcher.cluster.kubernetes import IMAGE_FILES, RUNS
from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import shown
from launcher.submit.pods import Document, Pods
from launcher.submit.scheduler import Submission

# With vpred- before it a name of DNS-1035, as Services demand it. By itself the value of a label.
_RUN = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_MOST_LETTERS = 52  # controllers add -worker-12345 and the like to a name; 63 is DNS' limit
_MOST_BYTES = 1 << 20  # of a ConfigMap


def pods_of(submission: Submission) -> Pods:
    """Return the pods that `submission` asks for. Raises ConfigError: when the settings cannot make a job."""
    pods = Pods(submission.run.root.name, submission.cluster, submission.settings, submission.train_yaml)
    if fault := next(_faults(submission, pods), None):
        raise ConfigError(fault)
    return pods


def require_small(document: Document) -> None:
    """Raise ConfigError when the ConfigMap with both documents is too large for Kubernetes."""
    size_bytes = sum(len(text.encode()) for text in document["data"].values())
    if size_bytes > _MOST_BYTES:
        raise ConfigError(
            f"recipe and cluster file: found {size_bytes} bytes together (Kubernetes keeps at most {_MOST_BYTES} in a "
            "ConfigMap; put long lists into files below a claim)"
        )


def _faults(submission: Submission, pods: Pods) -> Iterator[str]:
    """Yield a line for each fault."""
    settings = pods.settings
    if not _RUN.fullmatch(pods.run) or len(pods.name) > _MOST_LETTERS:
        yield (
            f"--run-dir: found {shown(pods.run)} (its name becomes the job's, vpred-NAME: at most "
            f"{_MOST_LETTERS - len('vpred-')} of a-z, 0-9 and -, with a letter or digit at both ends)"
        )
    if settings.image is None:
        yield "submit.kubernetes.image: found nothing (name the image of the pods; the Dockerfile builds it)"
    yield from _faults_of_workload(pods)
    for name in settings.labels:
        if name in pods.labels:
            yield f"submit.kubernetes.labels: remove {name} (the launcher finds its pods by it)"
    yield from _paths(yaml_dialect.parse(pods.train_yaml), pods)


def _faults_of_workload(pods: Pods) -> Iterator[str]:
    settings, workload = pods.settings, pods.settings.workload
    key = "submit.kubernetes"
    if settings.rank_table is not None and (not pods.is_ascend or workload not in ("volcano", "ascendjob")):
        found = f"workload {workload} on {pods.cluster.accelerator}"
        yield f"{key}.rank_table: remove it (no controller writes one for {found})"
    if workload == "ascendjob" and not pods.is_ascend:
        yield f"{key}.workload: found 'ascendjob' (it is for accelerator ascend; take job, volcano or mpijob)"
    if workload == "ascendjob" and pods.is_ascend and settings.rank_table is None:
        why = "an AscendJob's pods have no DNS names; its operator's table has their addresses"
        yield f"{key}.rank_table: found nothing ({why})"
    if workload == "ascendjob" and settings.namespace is None:
        yield f"{key}.namespace: found nothing (the folder of an AscendJob's rank table is named after it)"
    if pods.cluster.launcher.kind == "local" and (pods.count > 1 or workload in ("mpijob", "ascendjob")):
        yield f"launcher.kind: found 'local' (it starts ranks on one host; workload {workload} has others; take mpirun)"
    if pods.cluster.launcher.rank_table is not None:
        yield f"launcher.rank_table: remove it (with Kubernetes {key}.rank_table names it)"


def _paths(recipe: Any, pods: Pods) -> Iterator[str]:
    """Yield a line for each path in the recipe that no pod has."""
    mounts = [RUNS, IMAGE_FILES, *map(PurePosixPath, pods.settings.data_claims.values())]
    sections = recipe if isinstance(recipe, dict) else {}
    for key, text in _texts(sections, ""):
        path = PurePosixPath(text)
        if path.is_absolute() and not any(path.is_relative_to(mount) for mount in mounts):
            known = f"pods have {', '.join(map(str, mounts))}"
            yield f"{key}: found {shown(text)} (no pod has this path; {known}; submit.kubernetes.data_claims adds more)"


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Yield the key and the value of every text in `value`."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from _texts(each, f"{key}.{name}".removeprefix("."))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _texts(each, f"{key}[{number}]")
