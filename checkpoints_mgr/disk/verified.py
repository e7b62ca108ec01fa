"""Finds the sound steps of a root: the manifest is intact, every file has its size, and every byte matches its digest.

Bytes are compared once. ROOT/.verified.json remembers the names, sizes, times and inodes of each sound step's files at
that time. A step whose files have changed since, or that is not recorded, is read again. So the file may be lost
without harm, and a file copied from elsewhere vouches for nothing.
"""

import json
import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.digests import canonical_json, document_digest
from checkpoints_mgr.disk.layout import PIN_SUFFIX, VERIFIED, step_name, steps_in
from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.disk.reading import lease, open_step, verify_between, verify_files
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.state import State

logger = logging.getLogger(__name__)

DIGEST = "digest"


class Sound(NamedTuple):
    """Describes a sound step, in the form that ranks exchange.

    nodes: the nodes on whose disks the step lies; [""] on shared disks.
    """

    step: int
    save_id: str
    nodes: list[str]
    metrics: dict[str, float]
    pinned: bool


@dataclass(frozen=True)
class Unsound:
    """Describes a step that does not count as a checkpoint now.

    proven: its bytes prove it corrupt; False after a disk error or for another format.
    """

    name: str
    fault: str
    proven: bool


@dataclass(frozen=True)
class Judgement:
    """Holds the steps of a root, newest first."""

    sound: list[Sound]
    unsound: list[Unsound]


def judge(root: Path) -> Judgement:
    """Judge every step. A step that was not verified before is read in full.

    Raises OSError: when the root cannot be listed.
    """
    names = storage.list_names(root)
    remembered, judged = _read_memory(root), Judgement([], [])
    memory: dict[str, Any] = {}
    for step in steps_in(names):
        name = step_name(step)
        try:
            memory[name] = _verified(root / name, remembered.get(name))
        except CorruptCheckpointError as error:
            judged.unsound.append(Unsound(name, str(error), proven=True))
        except (OSError, CheckpointError) as error:
            judged.unsound.append(Unsound(name, str(error), proven=False))
        else:
            fact = memory[name]
            pinned = name + PIN_SUFFIX in names
            judged.sound.append(Sound(step, fact["save_id"], fact["nodes"], fact["metrics"], pinned))
    if memory != remembered:
        _write_memory(root, memory)
    return judged


def remember(root: Path, step: int, manifest: Manifest) -> None:
    """Record a step as sound: every byte has just been compared with its digest, or been written with it."""
    try:
        memory = _read_memory(root)
        memory[step_name(step)] = _facts(manifest, _fingerprint(root / step_name(step)))
        _write_memory(root, memory)
    except OSError as error:
        logger.warning("%s will be read again, to check whether it is sound: %s", root / step_name(step), error)


def remember_restored(root: Path, step: int, manifest: Manifest, template: State) -> None:
    """Record a step as sound after all ranks together have filled the template from it.

    If the template names all tensors of the step, the bytes between them are read now, and so every byte is verified.
    Otherwise nothing is recorded.
    """
    of_shards = (f"{name}/{tensor}" for name, shard in template.shards.items() for tensor in shard.shapes)
    if {*template.whole, *of_shards} != manifest.tensors.keys():
        return
    try:
        verify_between(root / step_name(step), manifest)
    except (OSError, CheckpointError) as error:
        logger.warning("step %d is restored, but not sound: %s", step, error)
    else:
        remember(root, step, manifest)


def _verified(directory: Path, remembered: Any) -> dict[str, Any]:
    """Return what to remember of a sound step.

    Raises CorruptCheckpointError, CheckpointError or OSError: when the step is not sound.
    """
    fingerprint = _fingerprint(directory)  # taken before reading: a file that changes meanwhile is read again
    if remembered is not None and remembered["files"] == fingerprint:
        found: dict[str, Any] = remembered
        return found
    with lease(directory):
        manifest = open_step(directory)
        verify_files(directory, manifest)
    return _facts(manifest, fingerprint)


def _facts(manifest: Manifest, fingerprint: str) -> dict[str, Any]:
    return {
        "files": fingerprint,
        "save_id": manifest.save_id,
        "nodes": manifest.nodes,
        "metrics": {name: value for name, value in manifest.metrics.items() if _is_number(value)},
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _fingerprint(directory: Path) -> str:
    try:
        return document_digest(storage.file_marks(directory))
    except NotADirectoryError as error:
        raise CorruptCheckpointError(f"{directory} is not a directory") from error


def _read_memory(root: Path) -> dict[str, Any]:
    """Return step directory -> its facts; empty if the file is not as it was written."""
    try:
        document = json.loads(storage.read_bytes(root / VERIFIED))
        digest = document.pop(DIGEST)
        if digest == document_digest(document) and _is_memory(document):
            return dict(document["steps"])
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        logger.debug("%s: %s", root / VERIFIED, error)
    logger.info("%s is damaged; the steps are verified again", root / VERIFIED)
    return {}


def _is_memory(document: Any) -> bool:
    """Return whether the document has the form of `_facts`. Other software may have written it."""

    def strings(values: Iterable[Any]) -> bool:
        return all(isinstance(value, str) for value in values)

    return all(
        strings([fact["files"], fact["save_id"], *fact["nodes"]])
        and isinstance(fact["nodes"], list)
        and all(map(_is_number, fact["metrics"].values()))
        for fact in document["steps"].values()
    )


def _write_memory(root: Path, memory: dict[str, Any]) -> None:
    """Write the facts. A failure (read-only root, full disk) only costs another reading."""
    document = {"steps": memory}
    try:
        storage.replace_small(root / VERIFIED, canonical_json(document | {DIGEST: document_digest(document)}))
    except OSError as error:
        logger.warning("cannot record which checkpoints are sound: %s", error)
