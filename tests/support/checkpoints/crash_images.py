"""What a disk may hold after a power cut, made from the record of a save's file operations.

After ALICE (Pillai et al. 2014, OSDI): what was not fsynced may be there, missing or torn, and directory entries
(created, renamed, removed) whose directory was not fsynced may each have happened or not, in any combination.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Operation = tuple[str, Path, Any]
DATA = ("kept", "lost", "torn")


@dataclass
class Change:
    """One directory entry's change: `name` comes to be `node` (None: goes), for a rename with `source` going."""

    name: str
    node: "Node | None"
    source: str | None = None
    durable: bool = False


@dataclass
class Node:
    """A directory or a file, as it is to running processes (live, data) and on the device."""

    is_dir: bool
    live: dict[str, "Node"] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    flushed: bytes = b""

    def change(self, change: Change) -> None:
        self.changes.append(change)
        if change.source is not None:
            self.live.pop(change.source)
        if change.node is None:
            self.live.pop(change.name)
        else:
            self.live[change.name] = change.node


class Recorder:
    """The hook for storage.set_failpoint: keeps all operations, with copies of what is written."""

    def __init__(self) -> None:
        self.log: list[Operation] = []

    def __call__(self, operation: str, path: Path, detail: Any) -> None:
        if operation == "write":
            detail = (detail[0], b"".join(detail[1]))
        self.log.append((operation, path, detail))


def load(path: Path) -> Node:
    """A tree that is safely on the device."""
    if path.is_file():
        content = path.read_bytes()
        return Node(False, data=bytearray(content), flushed=content)
    node = Node(True)
    for entry in sorted(path.iterdir()):
        node.change(Change(entry.name, load(entry), durable=True))
    return node


def replay(root: Node, base: Path, log: Sequence[Operation]) -> None:
    """Carry out operations on a tree that stands for `base`."""

    def find(path: Path) -> Node:
        node = root
        for part in path.relative_to(base).parts:
            node = node.live[part]
        return node

    for operation, path, detail in log:
        if not path.is_relative_to(base):
            continue
        if operation in ("mkdir", "create"):
            find(path.parent).change(Change(path.name, Node(operation == "mkdir")))
        elif operation == "write":
            offset, content = detail
            find(path).data[offset : offset + len(content)] = content
        elif operation == "fsync":
            find(path).flushed = bytes(find(path).data)
        elif operation == "rename":
            find(path.parent).change(Change(detail.name, find(path), source=path.name))
        elif operation in ("unlink", "rmdir"):
            find(path.parent).change(Change(path.name, None))
        elif operation == "sync_dir":
            for change in find(path).changes:
                change.durable = True


def open_changes(node: Node) -> list[Change]:
    """Entries that a power cut may or may not undo."""
    own = [change for change in node.changes if not change.durable]
    nodes = {id(change.node): change.node for change in node.changes if change.node is not None}
    return own + [change for below in nodes.values() for change in open_changes(below)]


def choices(pending: Sequence[Change], chance: random.Random) -> Iterator[set[int]]:
    """Which open changes happened (by id): none, all, all but one, one alone, and some at random."""
    ids = [id(change) for change in pending]
    yield set()
    yield set(ids)
    for one in ids[-6:]:
        yield set(ids) - {one}
        yield {one}
    for _ in range(3):
        yield {one for one in ids if chance.random() < 0.5}


def image(node: Node, happened: set[int], data: str) -> Any:
    """What the device holds: nested dict of bytes."""
    if not node.is_dir:
        if bytes(node.data) == node.flushed or data == "kept":
            return bytes(node.data)
        return (
            node.flushed if data == "lost" else node.flushed + bytes(node.data[len(node.flushed) :][:100]) + bytes(60)
        )
    entries: dict[str, Node] = {}
    for change in node.changes:
        if change.durable or id(change) in happened:
            if change.source is not None:
                entries.pop(change.source, None)
            entries.pop(change.name, None)
            if change.node is not None:
                entries[change.name] = change.node
    return {name: image(below, happened, data) for name, below in entries.items()}


def write(content: Any, path: Path) -> None:
    """Put an image onto a real disk."""
    if isinstance(content, bytes):
        path.write_bytes(content)
        return
    path.mkdir()
    for name, below in content.items():
        write(below, path / name)
