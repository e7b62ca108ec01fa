"""Checks what rank table 1.2 adds: A3 super-pods. A pod's devices reach each other over HCCS by super_device_id."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

from launcher.contract.config_errors import shown
from launcher.ranktable.rules_v1 import Rule, Target, places
from launcher.ranktable.table_findings import Finding

_SDID = "take SDID of `npu-smi info -t spod-info -i NPU -c CHIP`"


def pods_or_not(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check that version, super_device_id and super_pod_list come together.

    Without them HCCL treats the servers as separate (AI-server mode).
    """
    found = places(table)
    without = [place for place in found if "super_device_id" not in place.device]
    has_pods = "super_pod_list" in table
    if without and (has_pods or len(without) < len(found)):
        for place in without:
            path = f"{place.path}.super_device_id"
            yield Finding(path, "nothing", "super-device-id-all", "others of the table have one", _SDID)
    mode = "so HCCL takes the AI-server mode and not HCCS between servers"
    remedy = "write 1.2 with super_device_id and super_pod_list, or 1.0 without: `vpred-launch ranktable convert`"
    if table["version"] == "1.2" and not has_pods:
        yield Finding("super_pod_list", "nothing", "super-pod-mode", f"1.2 without it, {mode}", remedy, "", "warning")
    if table["version"] == "1.0" and (has_pods or len(without) < len(found)):
        yield Finding("version", shown("1.0"), "super-pod-mode", f"super pods need 1.2, {mode}", remedy, "", "warning")


def pod_ids(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    seen: set[str] = set()
    for i, pod in enumerate(table.get("super_pod_list", ())):
        if pod["super_pod_id"] in seen:
            remedy = "list each super pod once, with all its servers"
            yield Finding(
                f"super_pod_list[{i}].super_pod_id",
                shown(pod["super_pod_id"]),
                "super-pod-id-unique",
                "given before",
                remedy,
            )
        seen.add(pod["super_pod_id"])


def pod_servers(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check that each server lies in one pod."""
    if "super_pod_list" not in table:
        return
    known = {server["server_id"] for server in table["server_list"]}
    seen: set[str] = set()
    for i, pod in enumerate(table["super_pod_list"]):
        for j, member in enumerate(pod["server_list"]):
            path, name = f"super_pod_list[{i}].server_list[{j}].server_id", member["server_id"]
            if name not in known:
                problem = "not in the table's server_list"
                yield Finding(path, shown(name), "super-pod-server-known", problem, "add the server or remove it here")
            if name in seen:
                remedy = "name it in its own pod only"
                yield Finding(path, shown(name), "super-pod-server-once", "named before", remedy)
            seen.add(name)
    for name in sorted(known - seen):
        remedy = "name it in the pod that it belongs to"
        yield Finding("super_pod_list", shown(name), "super-pod-server-once", "a server in no super pod", remedy)


def pod_order(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    pod_of = pods_by_server(table)
    order = [pod for pod, _ in groupby(pod_of.get(server["server_id"]) for server in table["server_list"])]
    seen: set[str | None] = set()
    for pod in order:
        if pod is not None and pod in seen:
            problem = "its servers do not stand one behind the other"
            remedy = "list pod by pod: `vpred-launch ranktable merge` does it"
            yield Finding("server_list", shown(pod), "super-pod-interleaved", problem, remedy)
        seen.add(pod)


def super_device_ids(table: dict[str, Any], target: Target) -> Iterator[Finding]:
    """Check that super_device_ids are unique inside a pod, except for processes that share a device."""
    pod_of = pods_by_server(table)
    owners: dict[tuple[str, int], tuple[str, str]] = {}
    for place in places(table):
        pod, number = pod_of.get(place.server), place.device.get("super_device_id")
        if pod is None or number is None:
            continue
        owner = (place.server, place.device["device_id"])
        if owners.setdefault((pod, int(number)), owner) != owner:
            other = owners[pod, int(number)]
            problem = f"also that of device {other[1]} of {other[0]} in super pod {pod}"
            yield Finding(f"{place.path}.super_device_id", shown(number), "super-device-id-unique", problem, _SDID)


def pods_by_server(table: dict[str, Any]) -> dict[str, str]:
    """Return server_id -> super_pod_id. It is empty when the table has no pods."""
    return {
        member["server_id"]: pod["super_pod_id"]
        for pod in table.get("super_pod_list", ())
        for member in pod["server_list"]
    }


POD_RULES: tuple[Rule, ...] = (pods_or_not, pod_ids, pod_servers, pod_order, super_device_ids)
