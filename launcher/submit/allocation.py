"""Takes the hosts of a run from the Slurm job that it runs in."""

import re
from collections.abc import Mapping, Sequence

from pydantic import ValidationError

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.cluster.submit import SubmitConfig
from launcher.contract.config import ConfigError
from launcher.contract.config_errors import first_mistake
from launcher.processes.ssh import Remote
from launcher.ranktable.discovery import discover, only
from launcher.submit.slurm import host_names

VISIBLE_DEVICES = "ASCEND_RT_VISIBLE_DEVICES"
_TIMEOUT_S = 60.0
_SPAN = re.compile(r"(\d+)(?:-(\d+))?", re.ASCII)


def allocated(cluster: ClusterConfig, env: Mapping[str, str], remote: Remote) -> ClusterConfig:
    """Return a cluster file with `submit` as one on the hosts of this job. The last nodes are the spare ones.

    Raises ConfigError: outside a job, when the job has too few nodes, or when their devices are not those wanted.
    """
    if cluster.submit is None:
        return cluster
    nodes = job_nodes(env)
    wanted, spare = cluster.submit.nodes, cluster.submit.spare_nodes
    if len(nodes) < wanted:
        found = f"the job has {len(nodes)} node(s) ({', '.join(nodes)}), submit.nodes is {wanted}"
        raise ConfigError(f"job {env['SLURM_JOB_ID']}: {found}", "ask for as many, or override cluster.submit.nodes")
    nodes = nodes[: wanted + spare]
    hosts = [Host(address=node) for node in nodes]
    if cluster.accelerator == "ascend":
        hosts = _with_devices(hosts, cluster.devices_per_host or 0, cluster.submit, remote)
    try:
        return cluster.on(hosts[:wanted], hosts[wanted:])
    except ValidationError as error:
        raise ConfigError(f"job {env['SLURM_JOB_ID']}: {first_mistake(error).reason}") from None


def job_nodes(env: Mapping[str, str]) -> list[str]:
    """Return the names of the job's nodes, in Slurm's order. Raises ConfigError: outside a job."""
    if "SLURM_JOB_ID" not in env:
        raise ConfigError(
            "submit: found no job of Slurm around this process",
            "hand the run over: vpred-launch submit, or take a cluster file that lists hosts",
        )
    return host_names(env.get("SLURM_JOB_NODELIST", ""))


def _with_devices(hosts: Sequence[Host], count: int, settings: SubmitConfig, remote: Remote) -> list[Host]:
    """Ask each node for its NPUs, and keep those that the job was given there.

    Raises ConfigError: when a node's share is unknown or is not `count` devices.
    """
    addresses = [host.address for host in hosts]
    given = remote.run(dict.fromkeys(addresses, ("printenv", VISIBLE_DEVICES)), _TIMEOUT_S)
    kept = []
    for host in discover(addresses, remote):
        text = given[host.address].stdout.strip()
        if not text and not settings.slurm.exclusive:
            raise ConfigError(
                f"{host.address}: {VISIBLE_DEVICES} is not set (which NPUs of a shared node are the job's is unknown)",
                "take submit.slurm.exclusive: true, or have Slurm set it",
            )
        found = only(host, _numbers(host.address, text)) if text else host
        if len(found.devices) != count:
            numbers = ", ".join(str(device.id) for device in found.devices)
            raise ConfigError(
                f"{host.address}: the job has {len(found.devices)} NPUs there ({numbers}), devices_per_host is {count}",
                "correct devices_per_host or submit.slurm.gres",
            )
        kept.append(found)
    return kept


def _numbers(address: str, text: str) -> set[int]:
    """Parse the physical ids in a list such as 0,1,4-7."""
    numbers: set[int] = set()
    for part in text.split(","):
        match = _SPAN.fullmatch(part.strip())
        if match is None:
            raise ConfigError(f"{address}: {VISIBLE_DEVICES} is {text!r}, not a list such as 0,1,4-7")
        numbers.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    return numbers
