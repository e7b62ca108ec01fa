"""Checks one host's answer to the probe by a table of small, independent functions."""

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.preflight.host_probe import HostFacts
from launcher.preflight.npus import Entries, npu_findings
from launcher.records.finding import Finding

_SKEW_S = 2.0
_SHM_BYTES = 64 << 20
_OPEN_FILES = 1024
_MEMORY_PER_RANK_BYTES = 1 << 30


@dataclass(frozen=True)
class HostView:
    """Holds a host, its answer, and what the answer is compared with.

    mark: a file in the run directory that this host must see
    entries: the rank table's entries for its devices
    asked_unix_s, answered_unix_s: this machine's clock before and after the probe
    """

    cluster: ClusterConfig
    host: Host
    facts: HostFacts
    run_root: Path
    mark: str
    entries: Entries
    asked_unix_s: float
    answered_unix_s: float

    @property
    def name(self) -> str:
        return self.host.address


def check_paths(view: HostView) -> Iterator[Finding]:
    """Check that the run directory is shared, and that the data can be read."""
    for path in view.facts["missing_paths"]:
        if path == view.mark:
            found = f"{view.name} does not see {view.run_root}"
            yield Finding("error", "run directory", found, "give a --run-dir that all hosts share")
        else:
            remedy = "share it, or copy it to the same place there"
            yield Finding("error", "data", f"{view.name} cannot read {path}", remedy)


def check_ports(view: HostView) -> Iterator[Finding]:
    """Check that the ports on which the run listens are free. A rank finds other metrics ports by itself."""
    for port, reason in view.facts["ports"]:
        found = f"{view.name} port {port} cannot be opened ({reason})"
        if port in view.cluster.metrics_ports:
            yield metrics_port_finding(found, reason)
        else:
            remedy = "end what a former run left there, or move it: cluster.network.scheduler_port"
            yield Finding("error", "ports", found, remedy)


def metrics_port_finding(found: str, reason: str) -> Finding:
    """Judge a metrics port that cannot be opened: another program's is a warning, a wrong address an error."""
    if reason == os.strerror(errno.EADDRINUSE):
        remedy = (
            "none needed: the rank takes another; NVIDIA's dcgm-exporter listens on 9400 (cluster.metrics.base_port)"
        )
        return Finding("warning", "metrics port", found, remedy)
    return Finding(
        "error", "metrics port", found, "set cluster.metrics.address and cluster.metrics.base_port to others"
    )


def check_clock(view: HostView) -> Iterator[Finding]:
    """Check that the host's clock agrees with this machine's."""
    there_unix_s = view.facts["time_unix_s"]
    skew_s = max(view.asked_unix_s - there_unix_s, there_unix_s - view.answered_unix_s, 0.0)
    if skew_s > _SKEW_S:
        found = f"{view.name} is {skew_s:.0f} s off this host"
        yield Finding("warning", "clock", found, "synchronise clocks (chrony, ntp)")


def check_disk(view: HostView) -> Iterator[Finding]:
    """Check that the run directory's disk has room."""
    if view.facts["free_bytes"] < view.cluster.preflight.min_free_disk_bytes:
        found = f"{view.name} has {_gib(view.facts['free_bytes'])} free for {view.run_root}"
        yield Finding("error", "disk", found, "free some space")


def check_shared_memory(view: HostView) -> Iterator[Finding]:
    """Check that /dev/shm has room for MPI's transport between ranks of one host."""
    if view.facts["shm_bytes"] < _SHM_BYTES:
        found = f"{view.name} has {view.facts['shm_bytes'] >> 20} MiB free in /dev/shm"
        yield Finding("warning", "shared memory", found, "enlarge it (docker: --shm-size), or clear leftovers")


def check_limits(view: HostView) -> Iterator[Finding]:
    """Check that ranks may open enough files. -1 is no limit."""
    if 0 <= view.facts["open_files"] < _OPEN_FILES:
        found = f"{view.name} allows {view.facts['open_files']} open files"
        yield Finding("warning", "limits", found, "ulimit -n 65536")


def check_memory(view: HostView) -> Iterator[Finding]:
    """Check that the host's ranks have enough memory to start."""
    ranks = view.cluster.ranks_on(view.host)
    if view.facts["memory_bytes"] < _MEMORY_PER_RANK_BYTES * ranks:
        found = f"{view.name} has {_gib(view.facts['memory_bytes'])} for {ranks} ranks"
        yield Finding("warning", "memory", found, "end other programs, or take fewer ranks")


def check_npus(view: HostView) -> Iterator[Finding]:
    """Check that the NPUs are there, healthy, free, and as the rank table lists them."""
    if view.cluster.accelerator == "ascend":
        facts = view.facts
        if view.cluster.launcher.kind == "srun":
            # It says which devices the job was given. A rank under srun does not see it.
            facts = {**facts, "visible_devices": None}
        yield from npu_findings(view.host, facts, view.entries)


HOST_CHECKS: tuple[Callable[[HostView], Iterator[Finding]], ...] = (
    check_paths,
    check_ports,
    check_clock,
    check_disk,
    check_shared_memory,
    check_limits,
    check_memory,
    check_npus,
)


def host_findings(view: HostView) -> Iterator[Finding]:
    """Yield all findings about one host, in the table's order. If it lacks all its NPUs, that is the only finding."""
    if view.host.devices and not view.facts["devices"]:
        remedy = "correct the cluster file's hosts, or take one with accelerator: cpu"
        yield Finding("error", "devices", f"{view.name} has no /dev/davinci*, so no Ascend NPU", remedy)
        return
    for check in HOST_CHECKS:
        yield from check(view)


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 30):.1f} GiB"
