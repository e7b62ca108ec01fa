"""Checks all hosts of a cluster at the same time: it probes each host and then compares the answers."""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.cluster.config import ClusterConfig
from launcher.cluster.hosts import Host
from launcher.contract import yaml_dialect
from launcher.contract.run_dir import RunDir
from launcher.planning.plan import ports
from launcher.preflight.host_checks import HostView, host_findings
from launcher.preflight.host_probe import HostFacts, Request
from launcher.preflight.npus import table_entries, tls_switches
from launcher.processes.ssh import Answer, Remote, is_here
from launcher.processes.tied import own_program
from launcher.records.finding import Finding

_TIMEOUT_S = 60.0
_TIMEOUT_WITH_TOOLS_S = 180.0  # 16 dies and a tool that does not answer


def check_hosts(
    cluster: ClusterConfig,
    run: RunDir,
    packages: Sequence[str],
    train_yaml: str,
    mpirun: Path | None,
    env: Mapping[str, str],
    remote: Remote,
) -> list[Finding]:
    """Return all findings about the cluster's hosts, with this one and the spare ones. It leaves no file behind.

    A fault of a spare host is only a warning: the run can begin without it.
    """
    place = nearest(run.root)
    timeout_s = _TIMEOUT_S if cluster.accelerator == "cpu" else _TIMEOUT_WITH_TOOLS_S
    asked_unix_s = time.time()
    # A temporary file: a host that does not see it has another disk.
    with tempfile.NamedTemporaryFile(dir=place, prefix=".preflight-") as mark:
        commands = {}
        for host in cluster.known_hosts:
            request = _request(cluster, host, packages, [mark.name, *data_paths(train_yaml)], mpirun, place)
            words = [
                *crossing_words(cluster, env),
                *own_program(sys.executable, "launcher.preflight.host_probe"),
                json.dumps(request),
            ]
            commands[host.address] = words
        answers = remote.run(commands, timeout_s)
        mark_name = mark.name
    facts: dict[str, HostFacts] = {}
    findings: list[Finding] = []
    entries = table_entries(cluster)
    spare = {host.address for host in cluster.restart.spare_hosts}
    for host in (*cluster.ordered_hosts, *cluster.restart.spare_hosts):
        heard = _heard(answers[host.address], timeout_s)
        if isinstance(heard, Finding):
            found = [heard]
        else:
            facts[host.address] = heard
            listed = entries.get(host.address, {})
            view = HostView(cluster, host, heard, run.root, mark_name, listed, asked_unix_s, time.time())
            found = list(host_findings(view))
        if host.address in spare:
            found = [as_of_spare(each) for each in found]
        findings += found
    findings += _all_side_by_side(facts, spare)
    if not any(finding.severity == "error" for finding in findings):
        also = f", {len(facts.keys() & spare)} of {len(spare)} spare host(s) too" if spare else ""
        findings.append(Finding("ok", "hosts", f"{len(facts.keys() - spare)} reached and alike{also}"))
    return findings


def nearest(path: Path) -> Path:
    """Return `path`, or the nearest of its parents that exists."""
    return next(each for each in (path, *path.parents) if each.exists())


def crossing_words(cluster: ClusterConfig, env: Mapping[str, str]) -> list[str]:
    """Return the first words of an argv that sets on another host the variables that its ranks get."""
    forwarded = {name: env[name] for name in cluster.launcher.forward_variables if name in env}
    return ["env", *(f"{name}={value}" for name, value in {**forwarded, **cluster.environment}.items())]


def as_of_spare(finding: Finding) -> Finding:
    """Return the finding as it counts for a spare host: an error becomes a warning."""
    severity = "warning" if finding.severity == "error" else finding.severity
    return replace(finding, severity=severity, check=f"spare host, {finding.check}")


def _all_side_by_side(facts: Mapping[str, HostFacts], spare: Set[str]) -> list[Finding]:
    """Compare the hosts of the run with each other, then each spare host with them."""
    own = {address: found for address, found in facts.items() if address not in spare}
    findings = list(_side_by_side(own))
    for address in facts.keys() & spare if own else ():
        more = _side_by_side({**own, address: facts[address]})
        findings += [as_of_spare(each) for each in more if each not in findings]
    return findings


def data_paths(train_yaml: str) -> list[str]:
    """Return the absolute paths in the recipe's section `data` that this host has, so that the others need them."""
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
        # The preflight checks this host's metrics ports without a probe.
        if (name == "scheduler" and host.address != first) or (name == "metrics" and is_here(host.address)):
            continue
        served = cluster.metrics.address if name == "metrics" and cluster.metrics is not None else None
        address = served or "0.0.0.0"  # noqa: S104  tried, not served
        wanted += [(address, port) for port in range(low, high + 1)]
    return {
        "packages": list(packages),
        "ports": wanted,
        "paths": paths,
        "mpirun": str(mpirun) if mpirun else None,
        "devices": [device.id for device in host.devices],
        "inventory": cluster.init == "rank_table",
        "place": str(place),
    }


def _heard(answer: Answer, timeout_s: float) -> HostFacts | Finding:
    """Return a host's facts, or a finding that says why there are none."""
    if (problem := answer.unreachable) is not None:
        return Finding("error", "reachability", f"{answer.host}: {problem.reason}", problem.remedy)
    if answer.returncode is None:
        remedy = "look at that host's load and file systems"
        return Finding("error", "reachability", f"{answer.host}: no answer in {timeout_s:.0f} s", remedy)
    if answer.returncode != 0:
        said = (answer.stderr.strip().splitlines() or [f"exit code {answer.returncode}"])[-1]
        remedy = "the same paths and packages on every host; PYTHONPATH and the like: launcher.forward_variables"
        return Finding("error", "probe", f"{answer.host}: {said}", remedy)
    facts: HostFacts = json.loads(answer.stdout.splitlines()[-1])
    return facts


def _side_by_side(facts: Mapping[str, HostFacts]) -> Iterator[Finding]:
    """Check that host names differ and that versions and TLS switches do not."""
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
    yield from tls_switches(facts)
