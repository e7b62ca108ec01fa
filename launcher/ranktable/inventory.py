"""Finds a host's devices in the texts of hccn_tool, /etc/hccn.conf and npu-smi.

The formats follow the tools' documentation. None of this has run beside an NPU.
"""

import re
from collections import Counter
from collections.abc import Iterator

from launcher.cluster.hosts import Device, Host
from launcher.ranktable.npu_probe import Captured
from launcher.ranktable.table_findings import is_address

_NO_NUMBER = 0xFFFFFFFF  # value of an unsigned field that was never set


class InventoryError(Exception):
    """Says what the tools of a host do not report. The message is ready to print."""


def host_of(address: str, captured: Captured) -> Host:
    """Return the host with all its devices.

    Raises InventoryError: when it has no devices, they name several super-pods, or only some of them have an SDID.
    """
    if not captured["devices"]:
        raise InventoryError(f"{address}: no /dev/davinci* (no NPU, no driver, or a container without its devices)")
    pods = dict(_super_pods(captured))
    names = Counter(pod for pod, _ in pods.values())
    if len(names) > 1:
        raise InventoryError(f"{address}: its devices name several super pods: {', '.join(sorted(names))}")
    devices = tuple(
        Device(
            id=number,
            ip=device_ip(captured, number),
            super_device_id=pods[number][1] if number in pods else None,
        )
        for number in captured["devices"]
    )
    missing = [device.id for device in devices if device.super_device_id is None]
    if names and missing:
        raise InventoryError(f"{address}: npu-smi reports the SDID of other devices, but not of device {missing[0]}")
    return Host(address=address, devices=devices, super_pod=next(iter(names), None))


def device_ip(captured: Captured, device: int) -> str | None:
    """Return a device's address: from hccn_tool (IPv4, then IPv6), else from /etc/hccn.conf, else None."""
    configured = parse_hccn_conf(captured["hccn_conf"] or "")
    said = (captured["ip"].get(str(device), ""), captured["ip6"].get(str(device), ""))
    return parse_hccn_ip(said[0]) or parse_hccn_ip(said[1]) or configured.get(device)


def parse_hccn_ip(text: str) -> str | None:
    """Find the address in the output of `hccn_tool -i N -ip [-inet6] -g`, None for -.-.-.- or an error."""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        address = value.strip().partition("/")[0]
        if name.strip().lower().endswith("ipaddr") and is_address(address):
            return address
    return None


def parse_hccn_conf(text: str) -> dict[int, str]:
    """Return device number -> address, from `address_0=...`, or from `IPv6address_0=...` where that is missing."""
    found: dict[int, str] = {}
    for prefix in ("IPv6address", "address"):
        for number, value in re.findall(rf"^\s*{prefix}_(\d+)\s*=\s*(\S+)", text, re.MULTILINE):
            if is_address(value):
                found[int(number)] = value
    return found


def parse_mapping(text: str) -> dict[int, tuple[int, int]]:
    """Return physical device -> (NPU, chip), from `npu-smi info -m`. Rows of the MCU have no number.

    Older versions lack the column "Chip Phy-ID". There the logical number is the physical one on the host.
    """
    found = {}
    physical_column = "Phy-ID" in text
    for row in re.findall(r"^\s*(\d+)\s+(\d+)\s+(\d+|-)\s+(\S+)", text, re.MULTILINE):
        number = row[3] if physical_column else row[2]
        if number.isdigit():
            found[int(number)] = (int(row[0]), int(row[1]))
    return found


def parse_spod_info(text: str) -> tuple[str, int] | None:
    """Return (Super Pod ID, SDID) from `npu-smi info -t spod-info`, None where the device has none."""
    values = dict(re.findall(r"^\s*(.+?)\s*:\s*(\d+)\s*$", text, re.MULTILINE))
    pod, number = values.get("Super Pod ID"), int(values.get("SDID", _NO_NUMBER))
    return None if pod is None or number == _NO_NUMBER else (pod, number)


def super_devices(captured: Captured) -> dict[int, int]:
    """Return device -> SDID for the devices in a super-pod."""
    return {number: pod[1] for number, pod in _super_pods(captured)}


def _super_pods(captured: Captured) -> Iterator[tuple[int, tuple[str, int]]]:
    for number, (npu, chip) in parse_mapping(captured["mapping"]).items():
        pod = parse_spod_info(captured["spod"].get(f"{npu} {chip}", ""))
        if pod is not None:
            yield number, pod
