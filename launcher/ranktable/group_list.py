"""Reads tables without a version: "template two" of 910A and ModelArts (`group_list`).

They have no rank ids: a device's rank is its place in the list.
"""

from collections.abc import Iterator
from typing import Any

from launcher.contract.config_errors import shown
from launcher.ranktable import table_findings as findings
from launcher.ranktable.table_findings import Finding, Key, check_object, entries

_COUNT = ("must be a number above 0", "write how many there are", lambda text: findings.is_number(text, 1))
_TOP = {
    "status": Key("status", str, "must be completed or initializing", "write completed when the table is complete",
                  findings.one_of("completed", "initializing"), True),
    "group_count": Key("group-count", str, *_COUNT),
    "group_list": Key("group-list", list, "must have at least one group", "list the group", bool, True),
}  # fmt: skip
_GROUP = {
    "group_name": Key("group-name", str, "must not be empty", "write hccl_world_group", bool),
    "instance_count": Key("instance-count", str, *_COUNT),
    "device_count": Key("device-count", str, *_COUNT),
    "instance_list": Key("instance-list", list, "must have at least one instance", "list them", bool, True),
}
_INSTANCE = {
    "server_id": Key("server-id", str, "must have 1 to 64 characters", "name the server", findings.text_of(64), True),
    "devices": Key("device-list", list, "must have at least one device", "list its devices", bool, True),
}
_DEVICE = {
    "device_id": Key("device-id", str, "must be the physical number", "take N of /dev/davinciN",
                     findings.is_number, True),
    "device_ip": Key("device-ip", str, "must be an address", "`hccn_tool -i DEVICE -ip -g` shows it",
                     findings.are_addresses, True),
}  # fmt: skip


def check(table: dict[str, Any]) -> list[Finding]:
    """Check what the format requires. All other rules are checked on the table that `servers` makes of it."""
    found = list(check_object(table, "", _TOP, frozenset({"group_name"})))
    for i, group in enumerate(entries(table, "group_list")):
        found += check_object(group, f"group_list[{i}]", _GROUP, frozenset())
        for j, instance in enumerate(entries(group, "instance_list")):
            path = f"group_list[{i}].instance_list[{j}]"
            found += check_object(instance, path, _INSTANCE, frozenset({"pod_name"}))
            for k, device in enumerate(entries(instance, "devices")):
                found += check_object(device, f"{path}.devices[{k}]", _DEVICE, frozenset())
    if not any(each.severity == "error" for each in found):
        found += _counts(table)
    return found


def servers(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the `server_list` of a 1.0 table with the same devices in the same order.

    Instances of a server are joined.
    """
    devices: dict[str, list[dict[str, Any]]] = {}
    for group in table["group_list"]:
        for instance in group["instance_list"]:
            devices.setdefault(instance["server_id"], []).extend(dict(device) for device in instance["devices"])
    return [{"server_id": server, "device": each} for server, each in devices.items()]


def _counts(table: dict[str, Any]) -> Iterator[Finding]:
    counted: list[tuple[str, dict[str, Any], str, int]] = [("", table, "group_count", len(table["group_list"]))]
    for i, group in enumerate(table["group_list"]):
        path, instances = f"group_list[{i}].", group["instance_list"]
        counted.append((path, group, "instance_count", len(instances)))
        counted.append((path, group, "device_count", sum(len(instance["devices"]) for instance in instances)))
    for path, holder, name, number in counted:
        if name in holder and int(holder[name]) != number:
            rule = name.replace("_", "-")
            yield Finding(f"{path}{name}", shown(holder[name]), rule, f"there are {number}", f'write "{number}"')
