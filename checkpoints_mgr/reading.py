"""Reading a committed step with every byte checked. No collectives: the command line uses it too."""

import logging
import secrets
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from checkpoints_mgr import storage
from checkpoints_mgr.digests import chunk_digests
from checkpoints_mgr.errors import CorruptCheckpointError
from checkpoints_mgr.layout import MANIFEST, QUARANTINE, step_of
from checkpoints_mgr.manifest import FileEntry, Manifest, from_bytes
from checkpoints_mgr.state import DTYPES, State

logger = logging.getLogger(__name__)


def read_manifest(directory: Path) -> bytes:
    """The manifest's bytes. CorruptCheckpointError when a committed step has none."""
    try:
        return storage.read_bytes(directory / MANIFEST)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{directory / MANIFEST} is missing") from error


def check_sizes(directory: Path, manifest: Manifest) -> None:
    """The cheap check: every file is there with its size. CorruptCheckpointError."""
    for entry in manifest.files:
        path = directory / entry.name
        try:
            size_bytes = storage.file_size(path)
        except FileNotFoundError as error:
            raise CorruptCheckpointError(f"{path} is missing") from error
        if size_bytes != entry.size_bytes:
            raise CorruptCheckpointError(f"{path} has {size_bytes} bytes, the manifest says {entry.size_bytes}")


def open_step(directory: Path) -> Manifest:
    """The manifest of a step whose own digest and file sizes are right. CorruptCheckpointError, CheckpointError."""
    manifest = from_bytes(read_manifest(directory), str(directory / MANIFEST))
    if step_of(directory.name) not in (None, manifest.step):
        raise CorruptCheckpointError(f"{directory / MANIFEST} is of step {manifest.step}")
    check_sizes(directory, manifest)
    return manifest


def read_file(directory: Path, entry: FileEntry) -> NDArray[np.uint8]:
    """All bytes of one file, uint8 (size_bytes,), every chunk checked. CorruptCheckpointError names the file."""
    path = directory / entry.name
    content = np.empty(entry.size_bytes, np.uint8)
    try:
        with storage.Reader(path) as reader:
            count = reader.read_into([content.data], 0)
    except FileNotFoundError as error:
        raise CorruptCheckpointError(f"{path} is missing") from error
    if count != entry.size_bytes:
        raise CorruptCheckpointError(f"{path} ends at byte {count} of {entry.size_bytes}")
    found = chunk_digests(content.data, entry.chunk_bytes)
    if len(found) != len(entry.digests):
        raise CorruptCheckpointError(f"{path} has {len(found)} chunks, the manifest says {len(entry.digests)}")
    for index, (have, want) in enumerate(zip(found, entry.digests, strict=True)):
        if have != want:
            start = index * entry.chunk_bytes
            raise CorruptCheckpointError(f"{path}: digest mismatch in the {entry.chunk_bytes} bytes from byte {start}")
    return content


def verify_files(directory: Path, manifest: Manifest) -> None:
    """The full check: every byte against its digest, one file in memory at a time. CorruptCheckpointError."""
    for entry in manifest.files:
        read_file(directory, entry)


def read_state(directory: Path, manifest: Manifest) -> State:
    """The state, every file verified. The arrays are writable views of one buffer for each file."""
    contents = [read_file(directory, entry) for entry in manifest.files]
    whole: dict[str, NDArray[Any]] = {}
    for placement in manifest.tensors:
        spec = placement.spec
        content = contents[placement.file][placement.offset : placement.offset + spec.size_bytes]
        whole[spec.name] = content.view(DTYPES[spec.dtype]).reshape(spec.shape)
    return State(whole, manifest.progress)


def quarantine(root: Path, directory: Path, fault: str) -> None:
    """Rank 0: move a corrupt step aside and keep it for inspection; a failure (read-only root) is logged only."""
    logger.error("checkpoint %s is corrupt: %s", directory, fault)
    utc = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target = root / QUARANTINE / f"{directory.name}-corrupt-{utc}-{secrets.token_hex(2)}"
    try:
        storage.make_root(target.parent)
        storage.rename(directory, target)
        storage.sync_dir(target.parent)
        storage.sync_dir(root)
    except OSError as error:
        logger.warning("cannot move %s to quarantine: %s", directory, error)
    else:
        logger.error("moved to %s", target)
