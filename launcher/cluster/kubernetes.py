"""Defines the keys `submit.kubernetes` of the cluster file."""

from typing import Annotated, Any, Literal

from pydantic import Field

from launcher.contract.config import Section

Workload = Literal["job", "volcano", "mpijob", "ascendjob"]


class KubernetesConfig(Section):
    """What a job asks of Kubernetes, for `submit.scheduler: kubernetes`."""

    workload: Workload = "job"
    """Kind of object that holds the pods: an Indexed Job, a Volcano Job, an MPIJob or an AscendJob."""

    namespace: str | None = None
    """Namespace of all objects. null takes the namespace of kubectl's context."""

    image: str | None = None
    """Image of the pods, with a tag or a digest. Kubernetes needs it."""

    runs_claim: str = "vpred-runs"
    """Claim of the volume with the run directories, which all pods share."""

    data_claims: dict[str, str] = Field(default_factory=dict)
    """Claims of volumes with data, by name, and the absolute path that each is mounted at."""

    queue: str | None = None
    """Queue of Kueue or Volcano. null uses none."""

    npu_resource: str = "huawei.com/Ascend910"
    """Name of the NPU as a resource. Huawei Cloud's CCE calls it huawei.com/ascend-1980."""

    cpu: str = "2"
    """Cores of a pod, as Kubernetes writes quantities."""

    memory: str = "4Gi"
    """Memory of a pod, as Kubernetes writes quantities."""

    shm: str = "1Gi"
    """Size of /dev/shm in a pod, which ranks of a host exchange data through."""

    node_selector: dict[str, str] = Field(default_factory=dict)
    """Labels that the nodes of the pods must have."""

    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that the pods tolerate, as Kubernetes writes them."""

    image_pull_secrets: tuple[str, ...] = ()
    """Secrets with which the image is pulled."""

    run_as_user: Annotated[int, Field(ge=1)] = 10001
    """Numeric user of all processes in the pods. 0 is refused, since nothing needs root."""

    rank_table: str | None = None
    """Absolute path in the pods of a rank table that a controller writes. null lets the launcher make it."""

    pod_monitor: bool = False
    """Add a PodMonitor, by which the Prometheus operator finds the ranks' metrics."""
