"""Manifests of all workloads of Kubernetes, as `submit` renders them."""

from pathlib import Path
from typing import Any

import yaml

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract.run_dir import RunDir
from launcher.submit.kubernetes import Kubernetes
from launcher.submit.scheduler import Submission
from support import CHECKOUT

CONFIGS = CHECKOUT / "cluster_configs"
CPU, ASCEND = "kubernetes_cpu_2x1", "kubernetes_ascend_4x8"
RECIPE = "total_samples: 16\ndata:\n  path: /data/images\n"
# Golden file -> cluster file and overrides. Each workload is there, with and without what is optional.
CASES: dict[str, tuple[str, tuple[str, ...]]] = {
    "job": (CPU, ("submit.setup=[source /opt/site.sh]",)),
    "job_kueue": (CPU, ("submit.kubernetes.queue=research", "submit.nodes=3", "submit.spare_nodes=1")),
    "volcano": (ASCEND, ()),
    "mpijob": (CPU, ("submit.kubernetes.workload=mpijob", "submit.kubernetes.queue=research", "workers_per_host=2")),
    "ascendjob": (ASCEND, ("submit.kubernetes.workload=ascendjob",)),
}


def submission(config: str, *overrides: str, recipe: str = RECIPE, run: str = "mine") -> Submission:
    cluster: ClusterConfig = load_cluster(CONFIGS / f"{config}.yaml", overrides)
    assert cluster.submit is not None
    return Submission(cluster, cluster.submit, recipe, RunDir(Path("/runs") / run), ("vpred-launch",))


def manifest(config: str, *overrides: str) -> str:
    (text,) = Kubernetes().render(submission(config, *overrides)).files.values()
    return text


def objects(name: str) -> list[dict[str, Any]]:
    """The objects of a case, as another YAML parser than ours reads them."""
    config, overrides = CASES[name]
    return list(yaml.safe_load_all(manifest(config, *overrides)))


def workload(name: str) -> dict[str, Any]:
    return objects(name)[0]


def templates(value: Any) -> list[dict[str, Any]]:
    """All templates of pods below `value`."""
    if isinstance(value, list):
        return [template for each in value for template in templates(each)]
    if not isinstance(value, dict):
        return []
    if "containers" in value.get("spec", {}):
        return [value]
    return templates(list(value.values()))
