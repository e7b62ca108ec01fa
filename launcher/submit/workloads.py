"""Renders the object that holds the pods, for each value of `submit.kubernetes.workload`.

Sources: batch/v1 Job (KEP-3329, KEP-3998); volcano.sh batch.volcano.sh/v1alpha1; kubeflow.org/v2beta1 MPIJob;
MindCluster's mindxdl.gitee.com/v1 AscendJob. None of their controllers has run these objects here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath

from launcher.cluster.kubernetes import Workload
from launcher.contract.exit_codes import ExitCode
from launcher.submit.pods import Document, Pods, Role, template

_KEEP_S = 7 * 24 * 3600  # a job that ended is shown for a week
# Failed pods of a plain Job until it fails. Ends with 75 and lost nodes do not count.
_BACKOFF_LIMIT = 3
_FINAL = [int(ExitCode.BAD_CONFIG), int(ExitCode.DIVERGED)]
_NPU_ANNOTATION = "metadata.annotations['huawei.com/Ascend910']"
_DRIVER = "/usr/local/Ascend/driver"


@dataclass(frozen=True)
class Kind:
    """Describes a workload.

    resource: its type as kubectl names it, TYPE.GROUP
    render: renders it, with what its controller needs beside it; the workload comes first
    needs_service: its pods have DNS names only through a Service of ours; the other controllers make one
    suspend: the patch that stops its pods and keeps the object, None where there is none
    """

    resource: str
    render: Callable[[Pods], list[Document]]
    needs_service: bool = False
    suspend: Document | None = None


def _job(pods: Pods) -> list[Document]:
    index = {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"}
    role = Role("$(VPRED_POD_INDEX)", env=({"name": "VPRED_POD_INDEX", "valueFrom": {"fieldRef": index}},))
    pod = template(pods, role)
    pod["spec"]["subdomain"] = pods.name
    spec = {
        "completionMode": "Indexed",
        "completions": pods.count,
        "parallelism": pods.count,
        "suspend": pods.settings.queue is not None,
        "backoffLimit": _BACKOFF_LIMIT,
        # No second pod of an index before the first is gone, so that a run has one launcher.
        "podReplacementPolicy": "Failed",
        "successPolicy": {"rules": [{"succeededIndexes": "0"}]},
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Ignore", "onExitCodes": _exit_codes([int(ExitCode.PREEMPTED)])},
                {"action": "FailJob", "onExitCodes": _exit_codes(_FINAL)},
            ]
        },
        "ttlSecondsAfterFinished": _KEEP_S,
        "template": pod,
    }
    return [{"apiVersion": "batch/v1", "kind": "Job", "metadata": pods.metadata(labels=_kueue(pods)), "spec": spec}]


def _exit_codes(codes: list[int]) -> Document:
    return {"containerName": "vpred", "operator": "In", "values": codes}


def _volcano(pods: Pods) -> list[Document]:
    env, volumes, beside = _of_npus(pods), [], []
    if pods.is_ascend:
        volumes.append(_driver())
        if pods.settings.rank_table is not None:
            table = f"rings-config-{pods.name}"  # MindCluster demands this name
            volumes.append(_table(pods, {"configMap": {"name": table}}))
            beside.append(_empty_table(pods, table))
    tasks = [
        {
            "name": "launcher",
            "replicas": 1,
            "policies": [{"event": "TaskCompleted", "action": "CompleteJob"}],
            "template": template(pods, Role("0", env=env, volumes=tuple(volumes))),
        }
    ]
    if pods.count > 1:
        worker = template(pods, Role("1", env=env, volumes=tuple(volumes)))
        tasks.append({"name": "worker", "replicas": pods.count - 1, "template": worker})
    spec = {
        "schedulerName": "volcano",
        "queue": pods.settings.queue or "default",
        "minAvailable": pods.submit.nodes,
        "maxRetry": pods.submit.max_requeues,  # each RestartJob counts, also after 75
        "ttlSecondsAfterFinished": _KEEP_S,
        "plugins": {"env": [], "svc": ["--publish-not-ready-addresses=true", "--disable-network-policy=true"]},
        # The first that matches counts.
        "policies": [
            {"event": "PodEvicted", "action": "RestartJob"},
            {"exitCode": int(ExitCode.PREEMPTED), "action": "RestartJob"},
            *({"exitCode": code, "action": "AbortJob"} for code in _FINAL),
            {"event": "PodFailed", "action": "RestartJob"},
        ],
        "tasks": tasks,
    }
    metadata = pods.metadata(labels=pods.settings.labels)
    return [{"apiVersion": "batch.volcano.sh/v1alpha1", "kind": "Job", "metadata": metadata, "spec": spec}, *beside]


def _mpijob(pods: Pods) -> list[Document]:
    launcher = template(pods, Role("0", has_ranks=False))
    worker = template(pods, Role("1", volumes=(_driver(),) if pods.is_ascend else ()))
    # The operator makes a worker again when it is gone, but not when it has failed.
    worker["spec"]["restartPolicy"] = "OnFailure"
    spec = {
        "slotsPerWorker": pods.cluster.ranks_per_node,
        "mpiImplementation": "OpenMPI",
        "sshAuthMountPath": "/etc/mpi-ssh",  # the operator's keys, which nobody uses
        "launcherCreationPolicy": "WaitForWorkersReady",
        "runPolicy": {
            "cleanPodPolicy": "Running",
            "backoffLimit": pods.submit.max_requeues,  # it counts every end of the launcher, also with 75
            "ttlSecondsAfterFinished": _KEEP_S,
            "suspend": pods.settings.queue is not None,
        },
        "mpiReplicaSpecs": {
            "Launcher": {"replicas": 1, "restartPolicy": "Never", "template": launcher},
            "Worker": {"replicas": pods.count, "restartPolicy": "OnFailure", "template": worker},
        },
    }
    metadata = pods.metadata(labels=_kueue(pods))
    return [{"apiVersion": "kubeflow.org/v2beta1", "kind": "MPIJob", "metadata": metadata, "spec": spec}]


def _ascendjob(pods: Pods) -> list[Document]:
    # The operator demands the names of container and port, and exactly one Scheduler, which has no NPU.
    folder = f"/user/mindx-dl/ranktable/{pods.settings.namespace}.{pods.name}"
    table = _table(pods, {"hostPath": {"path": folder}})
    launcher = template(pods, Role("0", has_ranks=False, container="ascend", port="ascendjob-port", volumes=(table,)))
    role = Role("1", container="ascend", port="ascendjob-port", env=_of_npus(pods), volumes=(table, _driver()))
    scheduling = {"minAvailable": 1 + pods.submit.nodes, "queue": pods.settings.queue or "default"}
    spec = {
        "schedulerName": "volcano",
        "runPolicy": {
            "backoffLimit": pods.submit.max_requeues,
            "cleanPodPolicy": "Running",
            "ttlSecondsAfterFinished": _KEEP_S,
            "schedulingPolicy": scheduling,
        },
        "successPolicy": "AllWorkers",
        "replicaSpecs": {
            "Scheduler": {"replicas": 1, "restartPolicy": "Never", "template": launcher},
            "Worker": {"replicas": pods.count, "restartPolicy": "Never", "template": template(pods, role)},
        },
    }
    metadata = pods.metadata(labels={"framework": "mindspore", **pods.settings.labels})
    return [{"apiVersion": "mindxdl.gitee.com/v1", "kind": "AscendJob", "metadata": metadata, "spec": spec}]


def _kueue(pods: Pods) -> dict[str, str]:
    queue = {} if pods.settings.queue is None else {"kueue.x-k8s.io/queue-name": pods.settings.queue}
    return {**pods.settings.labels, **queue}


def _of_npus(pods: Pods) -> tuple[Document, ...]:
    """Return the variables with which Ascend Docker Runtime mounts the NPUs that Volcano chose."""
    if not pods.is_ascend:
        return ()
    return (
        {"name": "XDL_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}},
        {"name": "ASCEND_VISIBLE_DEVICES", "valueFrom": {"fieldRef": {"fieldPath": _NPU_ANNOTATION}}},
    )


def _driver() -> tuple[str, Document, str]:
    return "driver", {"hostPath": {"path": _DRIVER}}, _DRIVER


def _table(pods: Pods, volume: Document) -> tuple[str, Document, str]:
    return "ranktable", volume, str(PurePosixPath(pods.settings.rank_table or "").parent)


def _empty_table(pods: Pods, name: str) -> Document:
    """Render the table that MindCluster's controller fills in."""
    data = {"hccl.json": '{"status":"initializing"}'}
    metadata = pods.metadata(name, pods.settings.labels)
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


KINDS: dict[Workload, Kind] = {
    "job": Kind("job.batch", _job, needs_service=True, suspend={"spec": {"suspend": True}}),
    "volcano": Kind("job.batch.volcano.sh", _volcano),
    "mpijob": Kind("mpijob.kubeflow.org", _mpijob, suspend={"spec": {"runPolicy": {"suspend": True}}}),
    "ascendjob": Kind("ascendjob.mindxdl.gitee.com", _ascendjob),
}
