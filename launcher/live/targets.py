"""Answers Prometheus' http_sd: the ranks of running runs, and the exporters of their hosts."""

from collections.abc import Iterable
from typing import Any

from launcher.records.run_facts import RunFacts
from launcher.records.targets import target_groups

_NODE_PORT = 9100  # node exporter
_NPU_PORT = 8082  # MindCluster's npu-exporter


def rank_groups(runs: Iterable[RunFacts]) -> list[dict[str, Any]]:
    """Return a group for each rank of each running attempt that has metrics."""
    return [
        group
        for facts in runs
        if facts.attempt_runs
        for group in target_groups(
            facts.name, facts.run.root, facts.plan.ranks, facts.statuses, tls=facts.plan.metrics_tls
        )
    ]


def node_groups(runs: Iterable[RunFacts]) -> list[dict[str, Any]]:
    """Return a group for the node exporter of each host of a running run. Its label hostname is that of the ranks."""
    return _of_hosts([facts for facts in runs if facts.lives], _NODE_PORT)


def npu_groups(runs: Iterable[RunFacts]) -> list[dict[str, Any]]:
    """Return the same for the npu-exporters of hosts with NPUs."""
    return _of_hosts([facts for facts in runs if facts.lives and facts.plan.accelerator == "ascend"], _NPU_PORT)


def _of_hosts(runs: Iterable[RunFacts], port: int) -> list[dict[str, Any]]:
    names: dict[str, str] = {}
    for facts in runs:
        for place in facts.plan.ranks:
            status = facts.statuses.get(place.rank)
            if status is not None or place.host not in names:
                names[place.host] = place.host if status is None else status.hostname
    return [
        {"targets": [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"], "labels": {"hostname": name}}
        for host, name in sorted(names.items())
    ]
