"""Submits runs to Kubernetes by kubectl. A job's id is NAMESPACE/TYPE/NAME."""

import json
import logging
import re
from typing import Any, Literal

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.submit.kubectl import CREATE, NotFoundError, kubectl
from launcher.submit.kubernetes_checks import pods_of, require_small
from launcher.submit.pods import Document, Pods, config_map, network_policy, pod_monitor, secret, service
from launcher.submit.scheduler import JobState, Rendered, Submission
from launcher.submit.ssh_keys import make_keys
from launcher.submit.workloads import KINDS

logger = logging.getLogger(__name__)

_DELETE_S = 600  # pods that are deleted may take their whole grace period
# Marks a job that `cancel` has stopped. A job that waits in a queue of Kueue is suspended as well.
_CANCELLED = "vpred/cancelled"
_QUEUE = r"{.metadata.labels.kueue\.x-k8s\.io/queue-name}"
_TRUE_CONDITIONS = '.status.conditions[?(@.status=="True")]'
# What one line about a job holds, in the order of _state's arguments. It fits all workloads: absent fields are empty.
_STATE = '{"\\t"}'.join(
    (
        "{.spec.suspend}{.spec.runPolicy.suspend}",
        f"{{.metadata.annotations.{_CANCELLED}}}",
        "{.status.state.phase}",
        f"{{{_TRUE_CONDITIONS}.type}}",
        f"{{{_TRUE_CONDITIONS}.reason}}",
        "{.status.active}",
        "{.status.failed}{.status.retryCount}",
    )
)
_PODS = (
    '{range .items[*]}{.spec.nodeName}{"\\t"}{.status.conditions[?(@.type=="PodScheduled")].message}'
    '{.status.containerStatuses[0].state.waiting.reason}{"\\n"}{end}'
)
_OVER = ("Complete", "Completed", "Succeeded", "Failed", "Aborted", "Terminated")
_TYPES = {kind.resource.partition(".")[2]: kind for kind in KINDS.values()}  # API group -> workload


def documents(pods: Pods) -> list[Document]:
    """Render all objects of a job, the workload first. It is pure."""
    kind = KINDS[pods.settings.workload]
    beside = [config_map(pods), secret(pods), *([service(pods)] if kind.needs_service else []), network_policy(pods)]
    return [*kind.render(pods), *beside, *([pod_monitor(pods)] if pods.settings.pod_monitor else [])]


class Kubernetes:
    """Runs jobs as pods of a Kubernetes cluster."""

    def render(self, submission: Submission) -> Rendered:
        """Render the manifest. Its Secret is without keys: those are made by `submit` and are written to no file."""
        pods = pods_of(submission)
        found = documents(pods)
        both = config_map(pods)
        require_small(both)
        if ":" not in str(pods.settings.image).rpartition("/")[2]:
            logger.warning(
                "submit.kubernetes.image: %s has no tag and no digest, so it may change", pods.settings.image
            )
        place = submission.run.submit
        files = {
            place.cluster_yaml: both["data"]["cluster.yaml"],
            place.recipe_yaml: both["data"]["recipe.yaml"],
            place.manifest: "---\n".join(map(yaml_dialect.render, found)),
        }
        return Rendered(files, ("kubectl", *CREATE))

    def submit(self, rendered: Rendered) -> str:
        """Create the workload, then the rest as its dependents, which Kubernetes deletes with it."""
        manifest = next(text for path, text in rendered.files.items() if path.name == "manifest.yaml")
        found = [yaml_dialect.parse(text) for text in re.split(r"(?m)^---\n", manifest)]
        workload, beside = found[0], found[1:]
        namespace = workload["metadata"].get("namespace") or _namespace()
        name = workload["metadata"]["name"]
        resource = _TYPES[workload["apiVersion"].partition("/")[0]].resource
        job_id = f"{namespace}/{resource}/{name}"
        _require_claims(namespace, workload)
        self._make_room(job_id)
        for each in beside:
            if each["kind"] == "Secret":
                each["stringData"] = make_keys()
        kubectl(namespace, *CREATE, "--dry-run=server", objects=found)
        uid = kubectl(namespace, *CREATE, "-o", "jsonpath={.metadata.uid}", objects=[workload])
        owner = {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": name, "uid": uid.strip()}
        for each in beside:
            each["metadata"]["ownerReferences"] = [owner]
        try:
            kubectl(namespace, *CREATE, objects=beside)
        except ConfigError:
            kubectl(namespace, "delete", f"{resource}/{name}", "--wait=false")
            raise
        return job_id

    def query(self, job_id: str) -> JobState | None:
        namespace, resource, name = job_id.split("/")
        try:
            answer = kubectl(namespace, "get", f"{resource}/{name}", "-o", f"jsonpath={_STATE}")
        except NotFoundError:
            return None
        suspended, cancelled, phase, types, reasons, active, failed = answer.rstrip("\n").split("\t")
        state = _state(suspended, cancelled, phase, types.split(), active)
        nodes, waiting = _pods(namespace, name)
        return JobState(
            job_id,
            _phase(state),
            state,
            reason=waiting or (reasons.split() or [""])[-1],
            nodes=nodes,
            restarts=int(failed) if failed.isdecimal() else 0,
        )

    def cancel(self, job: JobState, *, now: bool) -> None:
        namespace, resource, name = job.job_id.split("/")
        kind, what = _TYPES[resource.partition(".")[2]], f"{resource}/{name}"
        if now or job.phase == "pending" or resource == KINDS["ascendjob"].resource:
            # An AscendJob cannot be stopped and kept. Its pods have their grace period for a checkpoint.
            kubectl(namespace, "delete", what, "--wait=false", *(("--grace-period=1",) if now else ()))
            return
        kubectl(namespace, "annotate", "--overwrite", what, f"{_CANCELLED}=true")
        uid, _, queue = kubectl(namespace, "get", what, "-o", f'jsonpath={{.metadata.uid}}{{"\\t"}}{_QUEUE}').partition(
            "\t"
        )
        if queue.strip():
            _evict(namespace, uid)
        elif kind.suspend is not None:
            kubectl(namespace, "patch", what, "--type=merge", "-p", json.dumps(kind.suspend))
        else:
            kubectl(namespace, *CREATE, objects=[_abort(name, uid)])

    def _make_room(self, job_id: str) -> None:
        """Delete a job of the same name that has ended. Raises ConfigError: when it has not."""
        job = self.query(job_id)
        if job is None:
            return
        if job.phase != "ended":
            raise ConfigError(f"{job_id}: is {job.state} already", "wait for it, or `vpred-launch cancel` it first")
        namespace, resource, name = job_id.split("/")
        # New objects need the names of its keys and documents.
        kubectl(namespace, "delete", f"{resource}/{name}", "--cascade=foreground", f"--timeout={_DELETE_S}s")


def _state(suspended: str, cancelled: str, phase: str, types: list[str], active: str) -> str:
    """Return one word for the state of a workload of any type."""
    over = next((each for each in (*types, phase) if each in _OVER), None)
    if over is not None:
        return over
    if cancelled == "true":
        return "Cancelled" if active in ("", "0") and phase != "Aborting" else "Stopping"
    if suspended == "true":
        return "Suspended"
    if phase:
        return phase
    return "Running" if "Running" in types or active not in ("", "0") else "Pending"


def _phase(state: str) -> Literal["pending", "running", "ended"]:
    if state in (*_OVER, "Cancelled"):
        return "ended"
    return "pending" if state in ("Suspended", "Pending") else "running"


def _pods(namespace: str, name: str) -> tuple[str, str]:
    """Return the nodes of the job's pods, and why one of them waits."""
    selector = f"app.kubernetes.io/name=vpred,app.kubernetes.io/instance={name.removeprefix('vpred-')}"
    answer = kubectl(namespace, "get", "pods", "-l", selector, "-o", f"jsonpath={_PODS}")
    rows = [line.partition("\t") for line in answer.splitlines()]
    waiting = next((reason.strip() for _, _, reason in rows if reason.strip()), "")
    return ",".join(dict.fromkeys(node for node, _, _ in rows if node)), waiting


def _namespace() -> str:
    return kubectl("", "config", "view", "--minify", "-o", "jsonpath={..namespace}").strip() or "default"


def _require_claims(namespace: str, workload: Document) -> None:
    """Raise ConfigError when a claim is missing, or when the pods of several nodes cannot share it."""
    claims = {volume["persistentVolumeClaim"]["claimName"]: volume["name"] for volume in _volumes(workload)}
    several = _count(workload) > 1
    for claim, volume in claims.items():
        key = "submit.kubernetes.runs_claim" if volume == "runs" else "submit.kubernetes.data_claims"
        try:
            modes = kubectl(namespace, "get", f"pvc/{claim}", "-o", "jsonpath={.spec.accessModes[*]}").split()
        except NotFoundError:
            raise ConfigError(f"{key}: found {claim!r}, which {namespace} does not have", "create the claim") from None
        shared = {"ReadWriteMany"} if volume == "runs" else {"ReadWriteMany", "ReadOnlyMany"}
        if several and not shared & set(modes):
            raise ConfigError(
                f"{key}: found {claim!r} with {', '.join(modes)}, which one node alone can mount",
                f"make it with accessModes {' or '.join(sorted(shared))}, or set submit.nodes: 1",
            )


def _volumes(value: Any) -> list[Document]:
    """Return all volumes with claims below `value`."""
    if isinstance(value, list):
        return [volume for each in value for volume in _volumes(each)]
    if not isinstance(value, dict):
        return []
    return [value] if "persistentVolumeClaim" in value else _volumes(list(value.values()))


def _count(workload: Document) -> int:
    spec = workload["spec"]
    replicas = [
        *spec.get("tasks", ()),
        *spec.get("mpiReplicaSpecs", {}).values(),
        *spec.get("replicaSpecs", {}).values(),
    ]
    return sum(each["replicas"] for each in replicas) or int(spec["parallelism"])


def _evict(namespace: str, job_uid: str) -> None:
    """Stop a job of a queue. Kueue itself suspends it then, and would start a job again that others suspend."""
    selector = f"kueue.x-k8s.io/job-uid={job_uid}"
    names = kubectl(namespace, "get", "workloads.kueue.x-k8s.io", "-l", selector, "-o", "name").split()
    for each in names:
        kubectl(namespace, "patch", each, "--type=merge", "-p", json.dumps({"spec": {"active": False}}))


def _abort(name: str, uid: str) -> Document:
    """Render Volcano's command to abort a job: its pods are deleted, and the object stays."""
    return {
        "apiVersion": "bus.volcano.sh/v1alpha1",
        "kind": "Command",
        "metadata": {"generateName": f"{name}-abort-"},
        "target": {
            "apiVersion": "batch.volcano.sh/v1alpha1",
            "kind": "Job",
            "name": name,
            "uid": uid,
            "controller": True,
        },
        "action": "AbortJob",
    }
