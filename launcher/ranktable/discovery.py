"""Asks every host of a cluster file which NPUs it has."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.cluster.hosts import Host
from launcher.contract.config import ConfigError, Section, load_document
from launcher.processes.ssh import Answer, Remote
from launcher.processes.tied import own_program
from launcher.ranktable.inventory import InventoryError, host_of

PROBE = own_program(sys.executable, "launcher.ranktable.npu_probe")
TIMEOUT_S = 180.0  # on 16 dies with a tool that does not answer


class _Asked(Section):
    """Is a part of a cluster file whose devices are yet to be found. Only the ids of its devices count."""

    model_config = ConfigDict(extra="ignore")


class _AskedDevice(_Asked):
    id: int


class _AskedHost(_Asked):
    address: str
    devices: tuple[_AskedDevice, ...] = ()


class _AskedCluster(_Asked):
    hosts: tuple[_AskedHost, ...]


def discovered_cluster(path: Path, overrides: Sequence[str], remote: Remote) -> ClusterConfig:
    """Load the cluster file with the addresses that its hosts' devices have now.

    A host that is listed without devices gets all devices that it has.
    Raises ConfigError: when the file has a mistake, or a host or a listed device is not found.
    """
    asked = load_document(_AskedCluster, path, overrides).hosts
    found = discover([host.address for host in asked], remote)
    hosts = [only(host, {device.id for device in wanted.devices}) for host, wanted in zip(found, asked, strict=True)]
    text = json.dumps([host.model_dump(mode="json", exclude_none=True) for host in hosts])
    return load_cluster(path, [*overrides, f"hosts={text}"])


def discover(addresses: Sequence[str], remote: Remote) -> list[Host]:
    """Ask the hosts for their devices, and return them in the given order.

    Raises ConfigError: when hosts do not answer; it has a line for each of them.
    """
    answers = remote.run(dict.fromkeys(addresses, PROBE), TIMEOUT_S)
    found, faults = [], []
    for address in addresses:
        answer = answers[address]
        try:
            if answer.unreachable:
                raise InventoryError(f"{address}: {answer.unreachable}")
            if answer.returncode != 0:
                raise InventoryError(f"{address}: {_why(answer)}")
            found.append(host_of(address, json.loads(answer.stdout)))
        except json.JSONDecodeError:
            faults.append(f"{address}: the probe answered {answer.stdout[:60]!r} (a login script that prints?)")
        except InventoryError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def only(host: Host, wanted: set[int]) -> Host:
    """Return `host` with the devices `wanted`, all if empty. Raises ConfigError: when one is not there."""
    if not wanted:
        return host
    there = {device.id for device in host.devices}
    if missing := sorted(wanted - there):
        has = ", ".join(map(str, sorted(there)))
        raise ConfigError(f"{host.address}: device {missing[0]} of the cluster file is not there (it has {has})")
    return host.model_copy(update={"devices": tuple(device for device in host.devices if device.id in wanted)})


def _why(answer: Answer) -> str:
    if answer.returncode is None:
        return f"the probe did not end within {TIMEOUT_S:.0f} s; does `npu-smi info` answer there?"
    said = answer.stderr.strip().splitlines() or ["it said nothing"]
    return f"the probe failed ({said[-1]}); is this software installed there as it is here, at {sys.executable}?"
