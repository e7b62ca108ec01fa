"""Submits runs to Kubernetes by kubectl. A job's id is NAMESPACE/TYPE/NAME."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from launcher.submit.kubectl import CREATE, NotFoundError, kubectl
from launcher.submit.kubernetes_checks import pods_of, require_small
from launcher.submit.pods import Document, Pods, config_map, network_policy, pod_monitor, secret, service
from launcher.submit.scheduler import JobState, Rendered, Submission
from launcher.submit.ssh_keys import make_keys
from launcher.submit.workloads import KINDS

logger = logging.getLogger(__name__)

_DELETE_S = 600  # pods that are deleted may take their whole grace period
_ANSWER_S = 30
# Marks a job that `cancel` has stopped. A job that waits in a queue of Kueue is suspended as well.
_CANCELLED = "vpred/cancelled"
_QUEUE = r"{.metadata.labels.kueue\.x-k8s\.io/queue-name}"
_TRUE_CONDITIONS = '.status.conditions[?(@.status=="True")]'
# The fields of a job's line, in the order of _state's arguments. Absent fields are empty, so it fits all workloads.
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
    '{range .items[*]}{.spec.nodeName}{"\\t"}{.status.containerStatuses[0].state.terminated.exitCode}{"\\t"}'
    '{.status.conditions[?(@.type=="PodScheduled")].message}{.status.containerStatuses[0].state.waiting.reason}'
    '{"\\n"}{end}'
)
_SUCCEEDED = ("Complete", "Completed", "Succeeded")
_OVER = (*_SUCCEEDED, "Failed", "Aborted", "Terminated")
_TYPES = {kind.resource.partition(".")[2]: kind for kind in KINDS.values()}  # API group -> workload


def documents(pods: Pods) -> list[Document]:
    """Render all objects of a job, the workload first. It is pure."""
    kind = KINDS[pods.settings.workload]
    beside = [config_map(pods), secret(pods), *([service(pods)] if kind.needs_service else []), network_policy(pods)]
    monitored = pods.settings.pod_monitor and pods.cluster.metrics is not None
    return [*kind.render(pods), *beside, *([pod_monitor(pods)] if monitored else [])]


class Kubernetes:
    """Runs jobs as pods of a Kubernetes cluster."""

    sees_our_files = False

    def render(self, submission: Submission) -> Rendered:
        """Render the manifest. Its Secret is without keys: those are made by `submit` and are written to no file."""
        pods = pods_of(submission)
        found = documents(pods)
        require_small(config_map(pods))
        if ":" not in str(pods.settings.image).rpartition("/")[2]:
            logger.warning(
                "submit.kubernetes.image: %s has no tag and no digest, so it may change", pods.settings.image
            )
        manifest = "---\n".join(map(yaml_dialect.render, found))
        return Rendered({submission.run.submit.manifest: manifest}, ("kubectl", *CREATE))

    def check(self, submission: Submission, rendered: Rendered) -> None:
        pods = pods_of(submission)
        namespace, found = _namespace(pods), documents(pods)
        _require_claims(namespace, pods)
        for each in found:  # a job of the same name that has ended is in nobody's way
            each["metadata"]["name"] += "-check"
        kubectl(namespace, *CREATE, "--dry-run=server", objects=found)

    def submit(self, submission: Submission, rendered: Rendered) -> str:
        """Create the workload, then the rest as its dependents, which Kubernetes deletes with it."""
        pods = pods_of(submission)
        namespace, resource = _namespace(pods), KINDS[pods.settings.workload].resource
        workload, *beside = documents(pods)
        keys = make_keys()
        self._make_room(f"{namespace}/{resource}/{pods.name}", [each["kind"] for each in beside])
        uid = kubectl(namespace, *CREATE, "-o", "jsonpath={.metadata.uid}", objects=[workload])
        owner = {"apiVersion": workload["apiVersion"], "kind": workload["kind"], "name": pods.name, "uid": uid.strip()}
        for each in beside:
            each["metadata"]["ownerReferences"] = [owner]
            if each["kind"] == "Secret":
                each["stringData"] = keys
        try:
            kubectl(namespace, *CREATE, objects=beside)
        except ConfigError:
            kubectl(namespace, "delete", f"{resource}/{pods.name}", "--wait=false")
            raise
        return f"{namespace}/{resource}/{pods.name}"

    def query(self, job_id: str) -> JobState | None:
        namespace, resource, name = job_id.split("/")
        try:
            answer = kubectl(namespace, "get", f"{resource}/{name}", "-o", f"jsonpath={_STATE}")
        except NotFoundError:
            return None
        suspended, cancelled, phase, types, reasons, active, failed = answer.rstrip("\n").split("\t")
        state = _state(suspended, cancelled, phase, types.split(), active)
        seen = _pods(namespace, name)
        return JobState(
            job_id,
            _phase(state),
            state,
            reason=seen.waiting or (reasons.split() or [""])[-1],
            nodes=",".join(seen.nodes),
            restarts=int(failed) if failed.isdecimal() else 0,
            exit_code=_exit_code(state, seen.exit_codes),
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

    def _make_room(self, job_id: str, kinds: Sequence[str]) -> None:
        """Delete a job of the same name that has ended, with its objects of `kinds`.

        Raises ConfigError: when it has not ended.
        """
        job = self.query(job_id)
        if job is None:
            return
        if job.phase != "ended":
            raise ConfigError(f"{job_id}: is {job.state} already", "wait for it, or `vpred-launch cancel` it first")
        namespace, resource, name = job_id.split("/")
        words = ("--cascade=foreground", f"--timeout={_DELETE_S}s")
        kubectl(namespace, "delete", f"{resource}/{name}", *words, timeout_s=_DELETE_S + _ANSWER_S)
        # Kubernetes deletes these too, but maybe after the answer, and new objects need their names.
        kubectl(namespace, "delete", ",".join(dict.fromkeys(kinds)), "-l", _selector(name))


def _state(suspended: str, cancelled: str, phase: str, types: list[str], active: str) -> str:
    """Return one word for the state of a workload of any type."""
    over = next((each for each in (*types, phase) if each in _OVER), None)
    if over is not None:
        return over
    has_pods = "Running" in types or active not in ("", "0")
    if cancelled == "true":
        return "Stopping" if has_pods or phase else "Cancelled"
    if suspended == "true":
        return "Suspended"
    return phase or ("Running" if has_pods else "Pending")


def _phase(state: str) -> Literal["pending", "running", "ended"]:
    if state in (*_OVER, "Cancelled"):
        return "ended"
    return "pending" if state in ("Suspended", "Pending") else "running"


@dataclass(frozen=True)
class _SeenPods:
    """Holds what the pods of a job report: their nodes, exit codes of those that ended, and why one of them waits."""

    nodes: tuple[str, ...]
    exit_codes: tuple[int, ...]
    waiting: str


def _pods(namespace: str, name: str) -> _SeenPods:
    answer = kubectl(namespace, "get", "pods", "-l", _selector(name), "-o", f"jsonpath={_PODS}")
    rows = [line.split("\t", 2) for line in answer.splitlines()]
    return _SeenPods(
        nodes=tuple(dict.fromkeys(row[0] for row in rows if row[0])),
        exit_codes=tuple(int(row[1]) for row in rows if row[1].isdecimal()),
        waiting=next((row[2].strip() for row in rows if row[2].strip()), ""),
    )


def _selector(name: str) -> str:
    """Return the selector of all objects of a job."""
    return f"app.kubernetes.io/name=vpred,app.kubernetes.io/instance={name.removeprefix('vpred-')}"


def _exit_code(state: str, of_pods: tuple[int, ...]) -> int | None:
    """Return the exit code of an ended job. Pods that Kubernetes stopped ended with 75 and explain nothing."""
    if state in _SUCCEEDED:
        return ExitCode.OK
    if state not in _OVER:
        return None
    return next((code for code in of_pods if code not in (ExitCode.OK, ExitCode.PREEMPTED)), ExitCode.FAILED)


def _namespace(pods: Pods) -> str:
    if pods.settings.namespace is not None:
        return pods.settings.namespace
    return kubectl("", "config", "view", "--minify", "-o", "jsonpath={..namespace}").strip() or "default"


def _require_claims(namespace: str, pods: Pods) -> None:
    """Raise ConfigError when a claim is missing, or when the pods of several nodes cannot share it."""
    claims = {pods.settings.runs_claim: "runs_claim", **dict.fromkeys(pods.settings.data_claims, "data_claims")}
    for claim, key in claims.items():
        place = f"submit.kubernetes.{key}: found {claim!r}"
        try:
            modes = kubectl(namespace, "get", f"pvc/{claim}", "-o", "jsonpath={.spec.accessModes[*]}").split()
        except NotFoundError:
            raise ConfigError(f"{place}, which namespace {namespace} does not have", "create the claim") from None
        shared = ("ReadWriteMany",) if key == "runs_claim" else ("ReadWriteMany", "ReadOnlyMany")
        if pods.count > 1 and not set(shared) & set(modes):
            remedy = f"take one with {' or '.join(shared)}, or set submit.nodes: 1"
            raise ConfigError(f"{place} with {', '.join(modes)} (pods on several nodes cannot share it)", remedy)


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
