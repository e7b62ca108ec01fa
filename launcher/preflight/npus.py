"""Compares what a host's tools report on its NPUs with what the run will use.

The formats follow the tools' documentation. None of this has run on an NPU.
"""

import json
import re
from collections.abc import Iterator, Mapping

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.contract.chips import chip_names, first_generation, is_first_generation, visible_devices
from launcher.preflight.host_probe import HostFacts, NpuWords
from launcher.ranktable.controller_table import chosen_table
from launcher.ranktable.editing import placements
from launcher.ranktable.inventory import device_ip, super_devices
from launcher.ranktable.npu_probe import Captured
from launcher.records.finding import Finding

_HEALTHY = re.compile(r"net health status\s*:\s*(success|init)", re.IGNORECASE)
_TLS = re.compile(r"tls switch\s*\[(\d)\]", re.IGNORECASE)
# npu-smi's table of processes: | NPU  Chip | Process id | Process name | ...
_PROCESS = re.compile(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*(\S+)\s*\|", re.MULTILINE)
_GENERATE_AGAIN = "use what `vpred-launch ranktable generate --discover --to hosts` prints"

# device id -> (its addresses in the table, separated by commas; its super_device_id); a text is empty where absent
Entries = dict[int, tuple[str, str]]


def table_entries(cluster: ClusterConfig) -> dict[str, Entries]:
    """Return, by host, the rank table's entries for its devices. It is empty without a rank table.

    A spare host has the entries that it would have in the table.
    """
    if cluster.init != "rank_table":
        return {}
    entries: dict[str, Entries] = {
        host.address: {d.id: (d.ip or "", _text(d.super_device_id)) for d in host.devices}
        for host in cluster.known_hosts
    }
    if cluster.launcher.rank_table is not None:
        table = json.loads(chosen_table(cluster))
        if table["version"] == "2.0":  # the probed tools do not report what 2.0 lists
            return {}
        ranks = [(host.address, device.id) for host in cluster.ordered_hosts for device in host.devices]
        for (address, device), place in zip(ranks, placements(table), strict=True):
            entries[address][device] = (place.device_ip, place.super_device_id)
    return entries


def npu_findings(host: Host, facts: HostFacts, entries: Entries) -> Iterator[Finding]:
    """Yield all findings about the devices that the run uses on `host`."""
    name = host.address
    absent = sorted({device.id for device in host.devices} - set(facts["devices"]))
    if absent:
        found = f"{name} has no /dev/davinci{absent[0]} ({len(absent)} of {len(host.devices)} missing)"
        yield Finding("error", "devices", found, "correct hosts[].devices, or look at `npu-smi info` there")
    hidden = _hidden(host, facts["visible_devices"])
    if hidden is not None:
        found = f"{name} has ASCEND_RT_VISIBLE_DEVICES={facts['visible_devices']}, which hides device {hidden}"
        yield Finding("error", "devices", found, "unset it: hosts[].devices alone says which are used")
    if old := next(filter(is_first_generation, chip_names(facts["npu_smi"])), None):
        yield Finding("error", "chips", f"{name}: {first_generation(old)}", "take Atlas A2 or later")
    if facts["inventory"] is not None:
        yield from _against_table(name, facts["inventory"], {k: v for k, v in entries.items() if k not in absent})
    for device, said in facts["npu"].items():
        if said["health"] and not _HEALTHY.search(said["health"]):
            found = f"{name} device {device}: {said['health'].strip()}"
            yield Finding("error", "NIC health", found, f"hccn_tool -i {device} -link -g; check cable and switch")
    wanted = {str(device.id) for device in host.devices}
    for device, pid, program in _PROCESS.findall(facts["npu_smi"]):
        if device in wanted:
            found = f"{name} device {device} is used by {program} (pid {pid})"
            yield Finding("error", "devices busy", found, "end it, or remove the device from the list")


def tls_switches(facts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    """Check that the TLS switch is the same on all devices of all hosts."""
    switches = {(host, device): _switch(said) for host, each in facts.items() for device, said in each["npu"].items()}
    known = {switch for switch in switches.values() if switch is not None}
    if len(known) > 1:
        (host, device), _ = min(item for item in switches.items() if item[1] == "0")
        seen = f"off on {host} device {device}, on elsewhere (HCCL: EI0016)"
        yield Finding("error", "TLS switch", seen, f"hccn_tool -i {device} -tls -s enable 1, or 0 everywhere")


def _against_table(name: str, captured: Captured, entries: Entries) -> Iterator[Finding]:
    """Check that the tools report the addresses and super-pod numbers that the rank table has."""
    numbers, silent = super_devices(captured), []
    for device, (listed, number) in sorted(entries.items()):
        there = device_ip(captured, device)
        words = captured["ip"].get(str(device), "").strip()
        if listed and there is None and "ipaddr" not in words:
            silent.append((device, words))
        elif listed and there not in listed.split(","):
            found = f"{name} device {device} has {there or 'no address'}, the rank table says {listed} (HCCL: EI0014)"
            yield Finding("error", "rank table", found, _GENERATE_AGAIN)
        if number and device in numbers and number != str(numbers[device]):
            found = f"{name} device {device} has SDID {numbers[device]}, the rank table says {number} (HCCL: EI0014)"
            yield Finding("error", "rank table", found, _GENERATE_AGAIN)
    if silent:
        device, words = silent[0]
        found = f"{name} does not report the address of device {device} ({len(silent)} such; {words or 'no words'})"
        yield Finding("warning", "rank table", found, f"`hccn_tool -i {device} -ip -g` there; it may need root")


def _hidden(host: Host, visible: str | None) -> int | None:
    """Return the first device of `host` that ASCEND_RT_VISIBLE_DEVICES hides, None without one."""
    if not visible:
        return None
    seen = visible_devices(visible)
    return next((device.id for device in host.devices if device.id not in seen), None)


def _switch(said: NpuWords) -> str | None:
    match = _TLS.search(said["tls"])
    return match[1] if match else None


def _text(number: int | None) -> str:
    return "" if number is None else str(number)
