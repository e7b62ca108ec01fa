"""The preflight of every host of a cluster at the same time: one probe on each, then the answers side by side."""

import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.cluster import ClusterConfig
from launcher.contract import yaml_dialect
from launcher.contract.run_dir import RunDir
from launcher.finding import Finding
from launcher.hosts import Host
from launcher.plan import ports
from launcher.probe import Request
from launcher.remote import Answer, Remote, is_here

_TIMEOUT_S = 60.0
_SKEW_S = 2.0
_SHM_BYTES = 64 << 20
_OPEN_FILES = 1024
_MEMORY_PER_RANK_BYTES = 1 << 30
_HEALTHY = re.compile(r"net health status\s*:\s*(success|init)", re.IGNORECASE)
_TLS = re.compile(r"tls switch\s*\[(\d)\]", re.IGNORECASE)
# npu-smi's table of processes: | NPU  Chip | Process id | Process name | ...
_PROCESS = re.compile(r"^\|\s*(\d+)\s+\d+\s*\|\s*(\d+)\s*\|\s*(\S+)\s*\|", re.MULTILINE)

Facts = dict[str, Any]


def check_hosts(
    cluster: ClusterConfig,
    run: RunDir,
    packages: Sequence[str],
    train_yaml: str,
    mpirun: Path | None,
    env: Mapping[str, str],
    remote: Remote,
) -> list[Finding]:
    """All findings about the cluster's hosts, this one among them. Writes nothing that stays."""
    place = next(path for path in (run.root, *run.root.parents) if path.exists())
    crossing = [f"{name}={env[name]}" for name in cluster.launcher.forward_variables if name in env]
    begin_s = time.time()
    # A file that is here for a moment: a host that does not see it has another disk.
    with tempfile.NamedTemporaryFile(dir=place, prefix=".preflight-") as mark:
        commands = {}
        for host in cluster.hosts:
            request = _request(cluster, host, packages, [mark.name, *data_paths(train_yaml)], mpirun, place)
            words = ["env", *crossing, sys.executable, "-P", "-m", "launcher.probe", json.dumps(request)]
            commands[host.address] = words
        answers = remote.run(commands, _TIMEOUT_S)
        mark_name = mark.name
    facts, findings = _heard(answers)
    for host in cluster.ordered_hosts:
        if host.address in facts:
            found = facts[host.address]
            findings += _one_host(cluster, host, found, mark_name, run, begin_s, time.time())
    findings += _side_by_side(facts)
    if not any(finding.severity == "error" for finding in findings):
        findings.append(Finding("ok", "hosts", f"{len(facts)} reached and alike"))
    return findings


def data_paths(train_yaml: str) -> list[str]:
    """Absolute paths in the recipe's section `data` that are on this host, and so are wanted on the others."""
    document = yaml_dialect.parse(train_yaml) if train_yaml else None
    section = document.get("data") if isinstance(document, dict) else None
    return [text for text in _texts(section) if text.startswith("/") and Path(text).exists()]


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def _request(
    cluster: ClusterConfig, host: Host, packages: Sequence[str], paths: list[str], mpirun: Path | None, place: Path
) -> Request:
    first = cluster.ordered_hosts[0].address
    wanted = []
    for name, (low, high) in ports(cluster).items():
        # This host's own metrics ports are looked at without a probe.
        if (name == "scheduler" and host.address != first) or (name == "metrics" and is_here(host.address)):
            continue
        address = cluster.metrics.address if name == "metrics" else "0.0.0.0"  # noqa: S104  tried, not served
        wanted += [(address, port) for port in range(low, high + 1)]
    return {
        "packages": list(packages),
        "ports": wanted,
        "paths": paths,
        "mpirun": str(mpirun) if mpirun else None,
        "devices": [device.id for device in host.devices],
        "place": str(place),
    }


def _heard(answers: Mapping[str, Answer]) -> tuple[dict[str, Facts], list[Finding]]:
    facts, findings = {}, []
    for address, answer in answers.items():
        if answer.unreachable:
            reason, _, remedy = answer.unreachable.partition("; ")
            findings.append(Finding("error", "reachability", f"{address}: {reason}", remedy))
        elif answer.returncode is None:
            remedy = "look at that host's load and file systems"
            findings.append(Finding("error", "reachability", f"{address}: no answer in {_TIMEOUT_S:.0f} s", remedy))
        elif answer.returncode != 0:
            said = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
            remedy = "the same paths and packages on every host; PYTHONPATH and the like: launcher.forward_variables"
            findings.append(Finding("error", "probe", f"{address}: {said}", remedy))
        else:
            facts[address] = json.loads(answer.stdout.splitlines()[-1])
    return facts, findings


def _one_host(
    cluster: ClusterConfig, host: Host, facts: Facts, mark: str, run: RunDir, begin_s: float, end_s: float
) -> Iterator[Finding]:
    name = host.address
    if host.devices and not facts["devices"]:
        remedy = "correct the cluster file's hosts, or take one with accelerator: cpu"
        yield Finding("error", "devices", f"{name} has no /dev/davinci*, so no Ascend NPU", remedy)
        return  # nothing else about it matters
    for path in facts["missing_paths"]:
        if path == mark:
            found, remedy = f"{name} does not see {run.root}", "give a --run-dir that all hosts share"
            yield Finding("error", "run directory", found, remedy)
        else:
            yield Finding("error", "data", f"{name} cannot read {path}", "share it, or copy it to the same place there")
    for port, reason in facts["ports"]:
        found, remedy = (
            f"{name} port {port} cannot be opened ({reason})",
            "end what a former run left there, or move it",
        )
        yield Finding("error", "ports", found, f"{remedy}: cluster.metrics.base_port, cluster.network.scheduler_port")
    skew_s = max(begin_s - facts["time_unix_s"], facts["time_unix_s"] - end_s, 0.0)
    if skew_s > _SKEW_S:
        yield Finding("warning", "clock", f"{name} is {skew_s:.0f} s off this host", "synchronise clocks (chrony, ntp)")
    if facts["free_bytes"] < cluster.preflight.min_free_disk_bytes:
        yield Finding("error", "disk", f"{name} has {_gib(facts['free_bytes'])} free for {run.root}", "free some space")
    if facts["shm_bytes"] < _SHM_BYTES:
        found = f"{name} has {facts['shm_bytes'] >> 20} MiB free in /dev/shm"
        yield Finding("warning", "shared memory", found, "enlarge it (docker: --shm-size), or clear leftovers")
    if 0 <= facts["open_files"] < _OPEN_FILES:
        yield Finding("warning", "limits", f"{name} allows {facts['open_files']} open files", "ulimit -n 65536")
    if facts["memory_bytes"] < _MEMORY_PER_RANK_BYTES * cluster.ranks_on(host):
        found = f"{name} has {_gib(facts['memory_bytes'])} for {cluster.ranks_on(host)} ranks"
        yield Finding("warning", "memory", found, "end other programs, or take fewer ranks")
    if cluster.accelerator == "ascend":
        yield from _npus(host, facts)


def _npus(host: Host, facts: Facts) -> Iterator[Finding]:
    """By the tools' words as documented; never run on an NPU."""
    name = host.address
    absent = sorted({device.id for device in host.devices} - set(facts["devices"]))
    if absent:
        found = f"{name} has no /dev/davinci{absent[0]} ({len(absent)} of {len(host.devices)} missing)"
        yield Finding("error", "devices", found, "correct hosts[].devices, or look at `npu-smi info` there")
    for device, said in facts["npu"].items():
        if said["health"] and not _HEALTHY.search(said["health"]):
            found = f"{name} device {device}: {said['health'].strip()}"
            yield Finding("error", "NIC health", found, f"hccn_tool -i {device} -link -g; check cable and switch")
    wanted = {str(device.id) for device in host.devices}
    for device, pid, program in _PROCESS.findall(facts["npu_smi"]):
        if device in wanted:
            found = f"{name} device {device} is used by {program} (pid {pid})"
            yield Finding("error", "devices busy", found, "end it, or take the device off the list")


def _side_by_side(facts: Mapping[str, Facts]) -> Iterator[Finding]:
    """What must differ and what must not."""
    names: dict[str, list[str]] = {}
    for address, found in facts.items():
        names.setdefault(found["hostname"], []).append(address)
    for hostname, addresses in names.items():
        if len(addresses) > 1:
            remedy = "give each host a name of its own: MindSpore counts local ranks by it"
            yield Finding("error", "host names", f"{' and '.join(addresses)} are both called {hostname}", remedy)
    if not facts:
        return
    first = next(iter(facts))
    for what, here in facts[first]["versions"].items():
        for address, found in facts.items():
            if found["versions"][what] != here:
                seen = f"{what} is {found['versions'][what]} on {address}, {here} on {first}"
                yield Finding("error", "versions", seen, "install the same on every host")
    switches = {(host, device): _switch(said) for host, each in facts.items() for device, said in each["npu"].items()}
    known = {switch for switch in switches.values() if switch is not None}
    if len(known) > 1:
        (host, device), _ = min(item for item in switches.items() if item[1] == "0")
        seen = f"off on {host} device {device}, on elsewhere (HCCL: EI0016)"
        yield Finding("error", "TLS switch", seen, f"hccn_tool -i {device} -tls -s enable 1, or 0 everywhere")


def _switch(said: Mapping[str, str]) -> str | None:
    match = _TLS.search(said["tls"])
    return match[1] if match else None


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
