"""Reads rank table files and checks them for all that HCCL would refuse; writes them atomically with their origin.

FILE.json.origin lies beside FILE.json. It has the digests of the table and of the inventory (hosts, devices, addresses)
from which the table was made. HCCL's format of the table has no place for them.
"""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from launcher.contract.config import ConfigError
from launcher.contract.config_errors import shown
from launcher.contract.files import write_atomic
from launcher.contract.run_dir import Record
from launcher.ranktable import group_list as template_two
from launcher.ranktable import rules_pods, rules_v1, rules_v2
from launcher.ranktable.editing import Table, convert, placements
from launcher.ranktable.rules_v1 import DEFAULT_TARGET, Target
from launcher.ranktable.table_findings import BAD_FILE, Finding

_LONGEST_PATH_BYTES = 4096
_LARGEST_BYTES = 1 << 30
# ModelArts and Kubernetes operators name a directory and write one of these into it.
_NAMES_IN_A_DIRECTORY = ("jobstart_hccl.json", "hccl.json")


class Origin(Record):
    """Holds SHA-256 digests as hexadecimal text."""

    inventory: str
    table: str


def fingerprint(table: Table) -> str:
    """Digest the servers, devices and addresses of a sound table, independently of their order and ranks."""
    return _digest("\n".join(sorted(str(replace(each, rank=0)) for each in placements(table))))


def write_table(path: Path, table: Table, inventory: str | None = None) -> None:
    """Write `table` atomically, with its origin if `inventory` is known.

    Raises ConfigError: when `path` does not end in .json or cannot be written.
    """
    if path.suffix != ".json":
        raise ConfigError(f"--output: found {str(path)!r} (HCCL needs a name that ends in .json)")
    text = render(table)
    try:
        # The origin comes first: between the two writes the pair counts as stale and is refused.
        if inventory is None:
            _origin(path).unlink(missing_ok=True)
        else:
            Origin(inventory=inventory, table=_digest(text)).write(_origin(path))
        write_atomic(path, text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from None


def render(table: Table) -> str:
    """Render the table as JSON text."""
    return json.dumps(table, indent=2) + "\n"


def find_file(path: Path) -> Path:
    """Return `path`, or the table in it if it is a directory.

    Raises ConfigError: when the directory has no table, or several without one of the usual names.
    """
    if not path.is_dir():
        return path
    named = [path / name for name in _NAMES_IN_A_DIRECTORY if (path / name).exists()]
    found = named[:1] or sorted(path.glob("*.json"))
    if len(found) != 1:
        names = ", ".join(each.name for each in found) or "none"
        raise ConfigError(f"{path}: a directory with {len(found)} tables ({names}); name one of them")
    return found[0]


def read_table(path: Path) -> tuple[Table, list[Finding]]:
    """Read the JSON of `path`, and find what HCCL would refuse about the file.

    The table is empty if it cannot be read.
    """
    found = []
    if path.suffix != ".json":
        found.append(_file_finding(shown(path.name), "file-name", "must end in .json", "rename it"))
    if len(os.fsencode(path.resolve())) > _LONGEST_PATH_BYTES:
        found.append(_file_finding(shown(str(path)), "file-path", "longer than 4096 bytes", "put it elsewhere"))
    try:
        if path.stat().st_size > _LARGEST_BYTES:
            return {}, [
                *found,
                _file_finding(f"{path.stat().st_size} bytes", "file-size", "more than 1 GiB", "split it"),
            ]
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        return {}, [
            *found,
            _file_finding("nothing to read", "file-readable", error.strerror or "", "check path and owner"),
        ]
    except UnicodeDecodeError as error:
        return {}, [*found, _file_finding(f"byte {error.start}", "file-json", "not UTF-8 text", "write it again")]
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        comment = "//" in text or "/*" in text
        remedy = "JSON has no comments: remove them" if comment else "write it again; it may be half written"
        return {}, [*found, _file_finding("no JSON", "file-json", str(error), remedy)]
    if not isinstance(table, dict):
        return {}, [*found, _file_finding(shown(table), "file-json", "must be a mapping", "write { ... }")]
    return table, found


def check_table(table: Table, target: Target = DEFAULT_TARGET) -> list[Finding]:
    """Find what is wrong with a table of any version.

    Rules on several values are checked only when each single value is right. For a template two, these findings have
    the paths of the 1.0 table that it becomes.
    """
    version = table.get("version")
    if version == "2.0":
        found = list(rules_v2.structure(table))
    elif version is None and "group_list" in table:
        found = template_two.check(table)
    elif version in ("1.0", "1.2") or not isinstance(version, str):
        found = list(rules_v1.structure(table))
    else:
        problem = "HCCL reads 1.0, 1.2 and, on Ascend 950, 2.0"
        return [Finding("version", shown(version), "version", problem, "write the version of your chip")]
    if table.get("status") == "initializing":
        problem, remedy = (
            "not complete yet; HCCL would wait for completed, 1800 s at most",
            "`vpred-launch ranktable wait`",
        )
        found.append(Finding("status", shown("initializing"), "completed", problem, remedy, ""))
    if any(each.severity == "error" for each in found):
        return found
    if version == "2.0":
        return [*found, *(each for rule in rules_v2.RULES for each in rule(table))]
    table = table if version else convert(table, "1.0")
    return [*found, *(each for rule in (*rules_v1.RULES, *rules_pods.POD_RULES) for each in rule(table, target))]


def check_origin(path: Path, inventory: str) -> list[Finding]:
    """Check that the table is unchanged and was made from this `inventory` (a fingerprint).

    Without an origin there are no findings.
    """
    try:
        origin = Origin.read(_origin(path))
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return [_stale("origin", "cannot be read")]
    if origin is None:
        return []
    if origin.table != _digest(text):
        return [_stale("table", "changed since it was made")]
    if origin.inventory != inventory:
        return [_stale("inventory", "made from other hosts, devices or addresses than the cluster file has")]
    return []


def _stale(what: str, problem: str) -> Finding:
    remedy = "generate it again: `vpred-launch ranktable generate`"
    return Finding("", f"a stale {what}", f"stale-{what}", problem, remedy, "")


def _origin(path: Path) -> Path:
    return path.with_name(f"{path.name}.origin")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _file_finding(value: str, rule: str, problem: str, remedy: str) -> Finding:
    return Finding("", value, rule, problem, remedy, BAD_FILE)
