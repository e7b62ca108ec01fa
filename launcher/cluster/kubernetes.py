"""Defines the keys `submit.kubernetes` of the cluster file, and the places in a pod."""

import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator

from launcher.contract.config import Section

Workload = Literal["job", "volcano", "mpijob", "ascendjob"]

# Where a pod finds what its job gives it. launcher/pods/ssh_config and sshd_config name KEYS and SSH_PORT too.
DOCUMENTS = PurePosixPath("/etc/vpred")
KEYS = PurePosixPath("/etc/vpred-ssh")
RUNS = PurePosixPath("/runs")
IMAGE_FILES = PurePosixPath("/opt/vpred")
SSH_PORT = 2222

_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
# apimachinery's resource.Quantity, without signs and exponents, which no amount of memory needs.
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")
_IMAGE = re.compile(r"[^\s@]+(@sha256:[0-9a-f]{64})?")
_NO_DATA_HERE = (DOCUMENTS, KEYS, RUNS, IMAGE_FILES, PurePosixPath("/tmp"), PurePosixPath("/dev"))  # noqa: S108


def _label(text: str) -> str:
    if not _LABEL.fullmatch(text):
        raise ValueError("must be a name of at most 63 of a-z, 0-9 and -, with a letter or digit at both ends")
    return text


def _subdomain(text: str) -> str:
    if not _SUBDOMAIN.fullmatch(text):
        raise ValueError("must be a name of a-z, 0-9, - and ., with a letter or digit at both ends")
    return text


def _quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text) or float(re.split(r"[A-Za-z]", text)[0]) == 0:
        raise ValueError("must be a quantity as Kubernetes writes it, such as 4Gi or 500m")
    return text


Label = Annotated[str, AfterValidator(_label)]
Subdomain = Annotated[str, AfterValidator(_subdomain)]
Quantity = Annotated[str, AfterValidator(_quantity)]


class KubernetesConfig(Section):
    """Describes a job of Kubernetes, for `submit.scheduler: kubernetes`."""

    workload: Workload = "job"
    """Kind of object that holds the pods: an Indexed Job, a Volcano Job, an MPIJob or an AscendJob."""

    namespace: Label | None = None
    """Namespace of all objects. null takes the namespace of kubectl's context."""

    image: str | None = None
    """Image of the pods, with a tag or a digest. Kubernetes needs it."""

    runs_claim: Subdomain = "vpred-runs"
    """Claim of the volume with the run directories, which all pods share. It is mounted at /runs."""

    data_claims: Annotated[dict[Subdomain, str], Field(default_factory=dict)]
    """Claims of volumes with data, by name, and the absolute path that each is mounted at, read-only."""

    queue: Label | None = None
    """Queue of Kueue (workloads job and mpijob) or of Volcano (the other two). null uses none."""

    npu_resource: str = "huawei.com/Ascend910"
    """Name of the NPU as a resource. Huawei Cloud's CCE calls it huawei.com/ascend-1980."""

    cpu: Quantity = "2"
    """Cores of a pod, as Kubernetes writes quantities. It is a request without a limit."""

    memory: Quantity = "4Gi"
    """Memory of a pod, as Kubernetes writes quantities. A pod that takes more is killed."""

    shm: Quantity = "1Gi"
    """Size of /dev/shm in a pod, which ranks of a host exchange data through. It counts as memory."""

    labels: Annotated[dict[str, str], Field(default_factory=dict)]
    """Further labels of the workload and its pods, such as ring-controller.atlas: ascend-910b for MindCluster."""

    node_selector: Annotated[dict[str, str], Field(default_factory=dict)]
    """Labels that the nodes of the pods must have."""

    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that the pods tolerate, as Kubernetes writes them."""

    image_pull_secrets: tuple[Subdomain, ...] = ()
    """Secrets with which the image is pulled."""

    run_as_user: Annotated[int, Field(ge=1, le=2**31 - 1)] = 10001
    """Numeric user of all processes in the pods. 0 is refused, since nothing needs root.
    ssh needs the user in the image's /etc/passwd, which has 10001, so several nodes need that."""

    supplemental_groups: tuple[Annotated[int, Field(ge=1, le=2**31 - 1)], ...] = ()
    """Further groups of that user, by number: the owner of the NPUs' device files (HwHiAiUser), often 1000."""

    rank_table: str | None = None
    """Absolute path in the pods of the rank table (hccl.json) that a controller writes, for volcano and ascendjob.
    null asks the pods for their NPUs."""

    pod_monitor: bool = False
    """Add a PodMonitor, by which the Prometheus operator finds the ranks' metrics."""

    metrics_namespace: Label = "monitoring"
    """Namespace whose pods may read the ranks' metrics. The NetworkPolicy keeps all others out."""

    @field_validator("image")
    @classmethod
    def _check_image(cls, image: str | None) -> str | None:
        if image is not None and not _IMAGE.fullmatch(image):
            raise ValueError("must be an image such as registry.example/vpred:0.2.0 or NAME@sha256:DIGEST")
        return image

    @field_validator("data_claims")
    @classmethod
    def _check_mounts(cls, claims: dict[str, str]) -> dict[str, str]:
        for claim, path in claims.items():
            place = PurePosixPath(path)
            if not place.is_absolute() or ".." in place.parts or place == PurePosixPath("/"):
                raise ValueError(f"{claim}: found {path!r} (give an absolute path below /)")
            if taken := [each for each in _NO_DATA_HERE if place.is_relative_to(each) or each.is_relative_to(place)]:
                raise ValueError(f"{claim}: found {path!r} (a pod has {taken[0]} for something else)")
        if len(set(claims.values())) < len(claims):
            raise ValueError("two claims are mounted at the same path")
        return claims

    @field_validator("rank_table")
    @classmethod
    def _check_rank_table(cls, table: str | None) -> str | None:
        if table is not None and not (table.startswith("/") and table.endswith(".json")):
            raise ValueError(
                "must be an absolute path that ends in .json, such as /user/serverid/devindex/config/hccl.json"
            )
        return table
