"""Asking every host of a cluster file what NPUs it has, through a channel that the caller gives."""

import json
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict

from launcher.cluster import LOCAL_ADDRESSES, ClusterConfig, Host, load_cluster
from launcher.contract.config import ConfigError, Section, load_document
from launcher.ranktable.inventory import InventoryError, host_of

PROBE = (sys.executable, "-P", "-m", "launcher.ranktable.probe")


@dataclass(frozen=True)
class Answer:
    """How a command on a host ended; `said` is its last line when it failed."""

    returncode: int
    stdout: str
    said: str = ""


# Runs an argv on each of the hosts, side by side.
Runner = Callable[[Sequence[str], Sequence[str]], Mapping[str, Answer]]


class _Address(Section):
    model_config = ConfigDict(extra="ignore")
    address: str


class _Addresses(Section):
    """A cluster file of which only the hosts' addresses matter: their devices are yet to be found."""

    model_config = ConfigDict(extra="ignore")
    hosts: tuple[_Address, ...]


def discovered_cluster(path: Path, overrides: Sequence[str], run: Runner) -> ClusterConfig:
    """The cluster file with the devices that its hosts have now, whatever it lists; raises ConfigError."""
    addresses = [host.address for host in load_document(_Addresses, path, overrides).hosts]
    hosts = [host.model_dump(mode="json", exclude_none=True) for host in discover(addresses, run)]
    return load_cluster(path, [*overrides, f"hosts={json.dumps(hosts)}"])


def discover(addresses: Sequence[str], run: Runner) -> list[Host]:
    """The hosts with their devices, in the order given; raises ConfigError with a line for each that does not tell."""
    answers = run(addresses, PROBE)
    found, faults = [], []
    for address in addresses:
        answer = answers[address]
        try:
            if answer.returncode != 0:
                raise InventoryError(
                    f"{address}: the probe failed ({answer.said}); is this software there as it is here?"
                )
            found.append(host_of(address, json.loads(answer.stdout)))
        except json.JSONDecodeError:
            faults.append(f"{address}: the probe answered {answer.stdout[:60]!r} (a login script that prints?)")
        except InventoryError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    return found


def run_on_hosts(hosts: Sequence[str], argv: Sequence[str]) -> dict[str, Answer]:
    """Runs `argv` here for hosts that are this machine; raises ConfigError for others."""
    here = LOCAL_ADDRESSES | {socket.gethostname(), socket.getfqdn()}
    away = [host for host in hosts if host not in here]
    if away:
        raise ConfigError(f"{away[0]}: is not this host; discover there and `vpred-launch ranktable merge` the tables")
    return {host: _run_here(argv) for host in hosts}


def _run_here(argv: Sequence[str]) -> Answer:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return Answer(done.returncode, done.stdout, (done.stderr.strip().splitlines() or ["it said nothing"])[-1])
