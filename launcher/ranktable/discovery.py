"""Asking every host of a cluster file what NPUs it has."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from pydantic import ConfigDict

from launcher.cluster import ClusterConfig, Host, load_cluster
from launcher.contract.config import ConfigError, Section, load_document
from launcher.ranktable.inventory import InventoryError, host_of
from launcher.remote import Answer, Remote

PROBE = (sys.executable, "-P", "-m", "launcher.ranktable.probe")
TIMEOUT_S = 180.0  # on 16 dies with a tool that does not answer


class _Address(Section):
    model_config = ConfigDict(extra="ignore")
    address: str


class _Addresses(Section):
    """A cluster file of which only the hosts' addresses matter: their devices are yet to be found."""

    model_config = ConfigDict(extra="ignore")
    hosts: tuple[_Address, ...]


def discovered_cluster(path: Path, overrides: Sequence[str], remote: Remote) -> ClusterConfig:
    """The cluster file with the devices that its hosts have now, whatever it lists; raises ConfigError."""
    addresses = [host.address for host in load_document(_Addresses, path, overrides).hosts]
    hosts = [host.model_dump(mode="json", exclude_none=True) for host in discover(addresses, remote)]
    return load_cluster(path, [*overrides, f"hosts={json.dumps(hosts)}"])


def discover(addresses: Sequence[str], remote: Remote) -> list[Host]:
    """The hosts with their devices, in the order given; raises ConfigError with a line for each that does not tell."""
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


def _why(answer: Answer) -> str:
    if answer.returncode is None:
        return f"the probe did not end within {TIMEOUT_S:.0f} s; does `npu-smi info` answer there?"
    said = answer.stderr.strip().splitlines() or ["it said nothing"]
    return f"the probe failed ({said[-1]}); is this software installed there as it is here, at {sys.executable}?"
