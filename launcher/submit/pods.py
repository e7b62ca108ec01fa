"""Renders the objects that all workloads of Kubernetes share: documents, keys, network, metrics and the pods' template.

Fields are those of Kubernetes 1.31 and later (kubernetes.io/docs/reference/kubernetes-api).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.cluster.config import ClusterConfig
from launcher.cluster.kubernetes import DOCUMENTS, KEYS, RUNS, SSH_PORT, KubernetesConfig
from launcher.cluster.submit import SubmitConfig
from launcher.contract.config import dump_yaml

Document = dict[str, Any]

KEY_FILES = ("id_ed25519", "authorized_keys", "host_ed25519", "known_hosts")
KEPT_OUT = "made when the job is submitted; kept nowhere else"
# `pod` may wait stop_grace_s for a checkpoint. Then ranks have 5 s until SIGKILL, and the rest is for the file system.
_GRACE_AFTER_STOP_S = 60
_OWNER_AND_GROUP_READ = 0o440  # ssh refuses keys that others may read


@dataclass(frozen=True)
class Pods:
    """Holds what all objects of a job have in common.

    run: name of the run and of its folder in the claim
    cluster: the cluster file, with its section `submit`
    train_yaml: the resolved recipe
    """

    run: str
    cluster: ClusterConfig
    submit: SubmitConfig
    train_yaml: str

    @property
    def name(self) -> str:
        return f"vpred-{self.run}"

    @property
    def count(self) -> int:
        return self.submit.nodes + self.submit.spare_nodes

    @property
    def settings(self) -> KubernetesConfig:
        return self.submit.kubernetes

    @property
    def labels(self) -> dict[str, str]:
        """Return the labels by which the pods of this job are found."""
        return {"app.kubernetes.io/name": "vpred", "app.kubernetes.io/instance": self.run}

    @property
    def is_ascend(self) -> bool:
        return self.cluster.accelerator == "ascend"

    def metadata(self, name: str = "", labels: Mapping[str, str] | None = None) -> Document:
        namespace = {"namespace": self.settings.namespace} if self.settings.namespace else {}
        managed = {"app.kubernetes.io/managed-by": "vpred-launch"}
        return {"name": name or self.name, **namespace, "labels": {**self.labels, **managed, **(labels or {})}}


def config_map(pods: Pods) -> Document:
    """Render both documents. Nobody can edit those of a running job."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": pods.metadata(),
        "immutable": True,
        "data": {"cluster.yaml": dump_yaml(pods.cluster), "recipe.yaml": pods.train_yaml},
    }


def secret(pods: Pods) -> Document:
    """Render the Secret without its keys, which are made when the job is submitted."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": pods.metadata(f"{pods.name}-ssh"),
        "immutable": True,
        "type": "Opaque",
        "stringData": dict.fromkeys(KEY_FILES, KEPT_OUT),
    }


def service(pods: Pods) -> Document:
    """Render the headless Service: a DNS name for each pod, also before it is ready, since ssh tries again."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": pods.metadata(),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": pods.labels,
            "ports": [{"name": "ssh", "port": SSH_PORT}],
        },
    }


def network_policy(pods: Pods) -> Document:
    """Render the NetworkPolicy: pods of this job reach each other, and Prometheus reaches their metrics."""
    ports = pods.cluster.metrics_ports
    ingress: list[Document] = [{"from": [{"podSelector": {"matchLabels": pods.labels}}]}]
    if ports:
        monitoring = {"matchLabels": {"kubernetes.io/metadata.name": pods.settings.metrics_namespace}}
        numbers = {"port": ports[0], "endPort": ports[-1]}
        ingress.append({"from": [{"namespaceSelector": monitoring}], "ports": [numbers]})
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": pods.metadata(),
        "spec": {
            "podSelector": {"matchLabels": pods.labels},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def pod_monitor(pods: Pods) -> Document:
    """Render the PodMonitor of the Prometheus operator: an endpoint for each local rank.

    The samples of a rank carry its labels. Their hostname is the pod's, so the node's name of the target replaces it.
    """
    named = None if pods.cluster.metrics is None else pods.cluster.metrics.run_name
    relabelings = [
        {"targetLabel": "job", "replacement": "vpred"},
        {"targetLabel": "run", "replacement": named or pods.run},
        {"sourceLabels": ["__meta_kubernetes_pod_node_name"], "targetLabel": "hostname"},
    ]
    of_samples = [{"action": "labeldrop", "regex": "exported_(run|hostname)"}]
    rank = {"interval": "15s", "relabelings": relabelings, "metricRelabelings": of_samples}
    endpoints = [{"port": name, **rank} for name in _metrics_ports(pods)]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": pods.metadata(),
        "spec": {
            "selector": {"matchLabels": pods.labels},
            "podMetricsEndpoints": endpoints,
        },
    }


@dataclass(frozen=True)
class Role:
    """Says what one kind of pod of a workload does.

    index: argument of `vpred-launch pod --index`; 0 launches the run
    has_ranks: ranks run in it. Without them it needs neither NPUs nor a node of its own
    container: name of the container
    port: name of the port of sshd
    env: further variables
    volumes: name -> further volume and the path that it is mounted at, read-only
    """

    index: str
    has_ranks: bool = True
    container: str = "vpred"
    port: str = "ssh"
    env: tuple[Document, ...] = ()
    volumes: tuple[tuple[str, Document, str], ...] = ()


def template(pods: Pods, role: Role) -> Document:
    """Render the template of a pod. It runs without root, capabilities, a writable image or a token of Kubernetes.

    It has no liveness probe: the launcher watches ranks, and a probe would end a long compilation.
    """
    settings = pods.settings
    spec: Document = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": round(pods.cluster.launcher.stop_grace_s) + _GRACE_AFTER_STOP_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": _security(settings),
    }
    if settings.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    if settings.node_selector and role.has_ranks:
        spec["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        spec["tolerations"] = [dict(each) for each in settings.tolerations]
    component = {"app.kubernetes.io/component": "host" if role.has_ranks else "launcher"}
    if pods.count > 1 and role.has_ranks:
        spec["affinity"] = _one_on_each_node({**pods.labels, **component})
    volumes = (
        *_volumes(pods),
        *((name, volume, {"mountPath": at, "readOnly": True}) for name, volume, at in role.volumes),
    )
    spec["containers"] = [_container(pods, role, [{"name": name, **mount} for name, _, mount in volumes])]
    spec["volumes"] = [{"name": name, **volume} for name, volume, _ in volumes]
    # A node that is scaled down would end the run for less than the run costs.
    keep = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    return {"metadata": {"labels": {**pods.labels, **component, **settings.labels}, "annotations": keep}, "spec": spec}


def _container(pods: Pods, role: Role, mounts: list[Document]) -> Document:
    container: Document = {"name": role.container, "image": pods.settings.image}
    if pods.submit.setup:
        lines = [*(f"{line} || exit 1" for line in pods.submit.setup), 'exec "$0" "$@"']
        container["command"] = ["tini", "--", "bash", "-c", "\n".join(lines), "vpred-launch"]
    container["args"] = [
        *("pod", "--index", role.index, "--run-dir", str(RUNS / pods.run)),
        *("--cluster", str(DOCUMENTS / "cluster.yaml"), "--recipe", str(DOCUMENTS / "recipe.yaml")),
    ]
    container["env"] = [*role.env, {"name": "HOME", "value": "/tmp"}]  # noqa: S108  the pod's only writable folder
    ports = [{"name": role.port, "containerPort": SSH_PORT}]
    if role.has_ranks:
        ports += [{"name": name, "containerPort": port} for name, port in _metrics_ports(pods).items()]
    container["ports"] = ports
    container["resources"] = _resources(pods, role)
    container["securityContext"] = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container["startupProbe"] = {"tcpSocket": {"port": role.port}, "periodSeconds": 2, "failureThreshold": 60}
    container["volumeMounts"] = mounts
    return container


def _security(settings: KubernetesConfig) -> Document:
    user = settings.run_as_user
    groups = {"supplementalGroups": list(settings.supplemental_groups)} if settings.supplemental_groups else {}
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        **groups,
        "fsGroupChangePolicy": "OnRootMismatch",  # else each start walks through all checkpoints
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _resources(pods: Pods, role: Role) -> Document:
    if not role.has_ranks:
        return {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "1Gi"}}
    settings = pods.settings
    # Requests and limits of an extended resource must be equal.
    npus = {settings.npu_resource: pods.cluster.ranks_per_node} if pods.is_ascend else {}
    return {
        "requests": {"cpu": settings.cpu, "memory": settings.memory, **npus},
        "limits": {"memory": settings.memory, **npus},
    }


def _one_on_each_node(labels: dict[str, str]) -> Document:
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": labels}}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _volumes(pods: Pods) -> list[tuple[str, Document, Document]]:
    """Return name, volume and mount of each."""
    settings = pods.settings
    keys = {"secretName": f"{pods.name}-ssh", "defaultMode": _OWNER_AND_GROUP_READ}
    data = [
        (
            f"data-{number}",
            {"persistentVolumeClaim": {"claimName": claim, "readOnly": True}},
            {"mountPath": path, "readOnly": True},
        )
        for number, (claim, path) in enumerate(settings.data_claims.items())
    ]
    return [
        ("documents", {"configMap": {"name": pods.name}}, {"mountPath": str(DOCUMENTS), "readOnly": True}),
        ("ssh", {"secret": keys}, {"mountPath": str(KEYS), "readOnly": True}),
        ("runs", {"persistentVolumeClaim": {"claimName": settings.runs_claim}}, {"mountPath": str(RUNS)}),
        *data,
        ("shm", {"emptyDir": {"medium": "Memory", "sizeLimit": settings.shm}}, {"mountPath": "/dev/shm"}),  # noqa: S108
        ("tmp", {"emptyDir": {}}, {"mountPath": "/tmp"}),  # noqa: S108
    ]


def _metrics_ports(pods: Pods) -> dict[str, int]:
    """Return name -> port of each local rank's metrics."""
    return {f"metrics-{rank}": port for rank, port in enumerate(pods.cluster.metrics_ports)}
