"""vpred-launch ranktable generate | merge | validate | convert | show | subset | diff | wait."""

import argparse
import json
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from launcher.cluster.config import ClusterConfig, load_cluster
from launcher.contract import yaml_dialect
from launcher.contract.config import ConfigError
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.files import write_atomic
from launcher.processes.srun import remote_for
from launcher.ranktable.controller_table import against_cluster
from launcher.ranktable.discovery import discovered_cluster
from launcher.ranktable.document import (
    check_origin,
    check_table,
    find_file,
    fingerprint,
    read_table,
    render,
    write_table,
)
from launcher.ranktable.editing import Table, convert, diff, merge, parse_selector, placements, subset
from launcher.ranktable.generate import hosts_of, make_table, target_of
from launcher.ranktable.rules_v1 import Target
from launcher.ranktable.table_findings import Finding
from launcher.ranktable.topology import check_topology

logger = logging.getLogger(__name__)

Command = Callable[[argparse.Namespace, Sequence[str]], int]
_SHOWN_OF_A_RULE = 10
_HCCL_WAIT_S = 1800.0
# Faults that a merge removes: it sorts, takes each device once and numbers the ranks again.
_MERGE_MENDS = frozenset(
    {
        "device-unique", "rank-contiguous", "rank-count", "rank-interleaved", "rank-unique", "server-count",
        "server-id-unique", "super-pod-interleaved",
    }
)  # fmt: skip


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `ranktable` with its own commands to those of vpred-launch."""
    tables = commands.add_parser("ranktable", help="HCCL rank tables", allow_abbrev=False)
    inner = tables.add_subparsers(required=True, metavar="COMMAND")
    generate = _add(inner, "generate", _generate, "the table of a cluster file, 1.2 for super-pods, else 1.0")
    _cluster_options(generate, required=True)
    _selection(generate)
    generate.add_argument("--to", choices=["1.0", "1.2", "hosts"], help="hosts: that section of a cluster file")
    merged = _add(inner, "merge", _merge, "one table of several: sorted, each device once, ranks numbered anew")
    merged.add_argument("tables", type=Path, nargs="+", metavar="FILE")
    validate = _add(inner, "validate", _validate, "what HCCL would refuse, and its code; exit code 2 if anything")
    validate.add_argument("table", type=Path, metavar="FILE")
    _cluster_options(validate, required=False)
    validate.add_argument("--chip", choices=["910A"], help="also what only this chip demands")
    validate.add_argument("--topology", type=Path, metavar="FILE", help="of 2.0: also against this topology file")
    validate.add_argument("--json", action="store_true", help="for programs")
    converted = _add(inner, "convert", _convert, "a table without version (group_list) or 1.2 as 1.0, or as hosts")
    converted.add_argument("table", type=Path, metavar="FILE")
    converted.add_argument("--to", choices=["1.0", "1.2", "hosts"], default="1.0")
    shown = _add(inner, "show", _show, "rank, server, device and address of each rank")
    shown.add_argument("table", type=Path, metavar="FILE")
    shown.add_argument("--json", action="store_true", help="for programs")
    part = _add(inner, "subset", _subset, "the table without some hosts or devices, ranks numbered anew")
    part.add_argument("table", type=Path, metavar="FILE")
    _selection(part)
    differ = _add(inner, "diff", _diff, "what differs between two tables; exit code 1 if anything")
    differ.add_argument("old", type=Path)
    differ.add_argument("new", type=Path)
    waiting = _add(inner, "wait", _wait, "until a controller has completed its table, then validate it")
    waiting.add_argument("table", type=Path, metavar="FILE", help="or its directory")
    waiting.add_argument("--timeout-s", type=_seconds, default=_HCCL_WAIT_S, help="default: 1800, as HCCL waits")
    waiting.add_argument("--interval-s", type=_seconds, default=1.0)
    for parser in (generate, merged, converted, part):
        parser.add_argument("--output", type=Path, metavar="FILE", help="default: stdout")


def _generate(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    cluster = _cluster(options, overrides)
    if cluster.accelerator != "ascend":
        found = f"{options.cluster}: accelerator: found {cluster.accelerator!r}"
        raise ConfigError(f"{found} (rank tables list Ascend devices)")
    table = _selected(options, make_table(cluster))
    if options.to == "hosts":
        return _write_hosts(options, table)
    return _write(options, convert(table, options.to or table["version"]), fingerprint(table))


def _merge(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _write(options, merge([_sound(path, _MERGE_MENDS) for path in options.tables]))


def _validate(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    if options.discover and options.cluster is None:
        raise ConfigError("--discover: found no --cluster (its hosts are asked)")
    cluster = _cluster(options, overrides) if options.cluster else None
    path = find_file(options.table)
    target = Target(chip=options.chip, inter_hccs=target_of(cluster).inter_hccs if cluster else True)
    table, found = _checked(path, target)
    if cluster is not None and not _errors(found):
        found += [*check_origin(path, fingerprint(make_table(cluster))), *against_cluster(table, cluster)]
    if options.topology is not None and not _errors(found):
        found += _topology(options.topology, path, table)
    if options.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    else:
        print(*(_lines(path, found) or [f"{path}: {_summary(table)}, nothing wrong"]), sep="\n")
    return ExitCode.BAD_CONFIG if _errors(found) else ExitCode.OK


def _topology(topology_path: Path, path: Path, table: Table) -> list[Finding]:
    if table.get("version") != "2.0":
        raise ConfigError(f"--topology: found a table of version {table.get('version')} in {path} (2.0 alone has one)")
    topology, found = read_table(topology_path)
    found = [replace(each, code="") for each in found] or check_topology(topology, table)
    return [replace(each, path=f"{topology_path}: {each.path}".rstrip(": ")) for each in found]


def _convert(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    table = _sound(options.table)
    return _write_hosts(options, table) if options.to == "hosts" else _write(options, convert(table, options.to))


def _show(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    table = _sound(options.table)
    ranks = placements(table)
    if options.json:
        print(json.dumps([asdict(each) for each in ranks], indent=2))
        return ExitCode.OK
    print(_summary(table))
    own = ("local_id",) if table.get("version") == "2.0" else ("super_device_id", "super_pod")
    names = ("rank", "server", "device_id", "device_ip", *own)
    rows = [names, *(tuple(str(getattr(each, name)) or "-" for name in names) for each in ranks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return ExitCode.OK


def _subset(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    return _write(options, _selected(options, _sound(options.table)))


def _diff(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    lines = diff(_sound(options.old), _sound(options.new))
    print(*lines, sep="\n", end="\n" if lines else "")
    return ExitCode.FAILED if lines else ExitCode.OK


def _wait(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    deadline_s = time.monotonic() + options.timeout_s
    while not _is_complete(options.table):
        if time.monotonic() >= deadline_s:
            logger.error("%s: not completed within %g s; look at its controller", options.table, options.timeout_s)
            return ExitCode.FAILED
        time.sleep(min(options.interval_s, max(0.0, deadline_s - time.monotonic())))
    path = find_file(options.table)
    table, found = _checked(path, Target())
    print(*_lines(path, found), f"{path}: {_summary(table)}", sep="\n")
    return ExitCode.BAD_CONFIG if _errors(found) else ExitCode.OK


def _seconds(text: str) -> float:
    """Parse an option's argument: seconds, 0 or more. Raises ArgumentTypeError: on anything else."""
    with suppress(ValueError):
        if 0 <= (seconds := float(text)) < math.inf:
            return seconds
    raise argparse.ArgumentTypeError(f"found {text!r} (give seconds, 0 or more)")


def _is_complete(path: Path) -> bool:
    """Return whether the table is complete. It is not while it is absent, half-written or initializing."""
    try:
        table, _ = read_table(find_file(path))
    except ConfigError:
        return False
    return table.get("status") == "completed" or (table.get("version") == "2.0" and "status" not in table)


def _cluster(options: argparse.Namespace, overrides: Sequence[str]) -> ClusterConfig:
    own = [each.removeprefix("cluster.") for each in overrides]
    if not options.discover:
        return load_cluster(options.cluster, own)
    return discovered_cluster(options.cluster, own, remote_for(environment()))


def _checked(path: Path, target: Target) -> tuple[Table, list[Finding]]:
    table, found = read_table(path)
    return (table, found) if _errors(found) else (table, [*found, *check_table(table, target)])


def _sound(path: Path, passing: frozenset[str] = frozenset()) -> Table:
    """Read a sound table. It may still be initializing.

    passing: rules whose errors do not count

    Raises ConfigError: when the table has other errors.
    """
    path = find_file(path)
    table, found = _checked(path, Target())
    if errors := [each for each in _errors(found) if each.rule not in {"completed", *passing}]:
        raise ConfigError("\n".join(_lines(path, errors)))
    return table


def _errors(found: Sequence[Finding]) -> list[Finding]:
    return [each for each in found if each.severity == "error"]


def _lines(path: Path | str, found: Sequence[Finding]) -> list[str]:
    """Return a line for each finding, but only a few of the same rule."""
    lines, counts = [], Counter(each.rule for each in found)
    left = dict.fromkeys(counts, _SHOWN_OF_A_RULE)
    for each in found:
        left[each.rule] -= 1
        if left[each.rule] >= 0:
            lines.append(f"{path}: {each}")
        elif left[each.rule] == -1:
            lines.append(f"{path}: ... {counts[each.rule] - _SHOWN_OF_A_RULE} more of {each.rule}; --json has all")
    return lines


def _summary(table: Table) -> str:
    ranks = placements(table)
    servers, pods = ({getattr(each, name) for each in ranks} - {""} for name in ("server", "super_pod"))
    form = f"version {table['version']}" if "version" in table else "no version (group_list)"
    return f"{form}, {len(ranks)} ranks on {len(servers)} server(s)" + (f" in {len(pods)} super pod(s)" if pods else "")


def _selected(options: argparse.Namespace, table: Table) -> Table:
    """Return what --include and --exclude leave of `table`. Raises ConfigError: when one names nothing in it."""
    included, excluded = ([parse_selector(text) for text in texts] for texts in (options.include, options.exclude))
    if not included and not excluded:
        return table
    ranks = placements(table)
    for selector in (*included, *excluded):
        there = {each.number for each in ranks if each.server == selector.host}
        if not there:
            known = ", ".join(sorted({each.server for each in ranks})[:_SHOWN_OF_A_RULE])
            raise ConfigError(f"found {selector} (no such server in the table; its servers: {known})")
        if absent := sorted((selector.devices or set()) - there):
            known = ", ".join(map(str, sorted(there)))
            raise ConfigError(f"found {selector} (no device {absent[0]} on that server; its devices: {known})")

    def keeps(server: str, number: int) -> bool:
        wanted = not included or any(each.covers(server, number) for each in included)
        return wanted and not any(each.covers(server, number) for each in excluded)

    return subset(table, keeps)


def _write_hosts(options: argparse.Namespace, table: Table) -> int:
    """Write the `hosts:` section of a cluster file with the devices of `table`."""
    text = yaml_dialect.render({"hosts": [each.model_dump(mode="json", exclude_none=True) for each in hosts_of(table)]})
    if options.output is None:
        print(text, end="")
        return ExitCode.OK
    try:
        write_atomic(options.output, text)
    except OSError as error:
        raise ConfigError(f"{options.output}: cannot be written ({error.strerror})") from None
    return ExitCode.OK


def _write(options: argparse.Namespace, table: Table, inventory: str | None = None) -> int:
    """Write `table`. Raises ConfigError: when it has errors; sound tables can make an unsound one."""
    if errors := [each for each in _errors(check_table(table)) if each.rule != "completed"]:
        raise ConfigError("\n".join(_lines("the table that would come out", errors)))
    if options.output is None:
        print(render(table), end="")
    else:
        write_table(options.output, table, inventory)
    return ExitCode.OK


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, command: Command, text: str
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    def run(options: argparse.Namespace, overrides: Sequence[str], trainer: object) -> int:
        if overrides and not getattr(options, "cluster", None):
            raise ConfigError(f"found {overrides[0]!r} (an override changes a cluster file, and none is given)")
        return command(options, overrides)

    parser.set_defaults(command=run)
    return parser


def _cluster_options(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument("--cluster", type=Path, required=required, metavar="FILE", help="hosts and their devices")
    text = "ask the hosts of the cluster file for their devices (hccn_tool, /etc/hccn.conf, npu-smi)"
    parser.add_argument("--discover", action="store_true", help=text)


def _selection(parser: argparse.ArgumentParser) -> None:
    for option, text in (("--include", "only this host"), ("--exclude", "without this host")):
        text = f"{text}, or HOST:0,3 for some of its devices (2.0: network and local_ids); may be given again"
        parser.add_argument(option, action="append", default=[], metavar="HOST", help=text)
