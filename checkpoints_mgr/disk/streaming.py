"""Streams full tensors out of a step's files, to write one safetensors file or to compare two steps."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.disk.reading import read_parts
from checkpoints_mgr.disk.tensor_file import TensorFile, blocks, wide_first
from checkpoints_mgr.errors import CheckpointError
from checkpoints_mgr.state import DTYPES, Parts, Range, TensorSpec

BATCH_BYTES = 64 << 20  # in memory at a time; a file's chunk is read twice only where two batches meet in it


@dataclass(frozen=True)
class Difference:
    """Describes a tensor that differs between two steps.

    fault: how dtype or shape differ; empty when they agree.
    elements: number of elements whose bits differ.
    largest: the largest absolute difference; NaN when one of the elements is not a number.
    """

    name: str
    fault: str = ""
    elements: int = 0
    largest: float = 0.0


def consolidate(directory: Path, manifest: Manifest, components: Sequence[str], output: Path) -> int:
    """Write the full tensors of these components as one safetensors file, and return its size in bytes.

    If there is one component, the names omit it. The metadata holds the checkpoint's record.
    Raises CheckpointError: when a component is unknown, a file exists already, or bytes are corrupt.
    """
    if unknown := [name for name in components if name not in manifest.components]:
        raise CheckpointError(f"no component {', '.join(unknown)}; there are: {', '.join(manifest.components)}")
    stored = [Range(spec, 0, spec.numel) for spec in _in_stored_order(manifest) if spec.component in components]
    ranges = sorted(stored, key=wide_first)
    metadata = {
        f"ckptmgr.{key}": value if isinstance(value, str) else json.dumps(value)
        for key, value in manifest.record.items()
    }
    plan = TensorFile(ranges, {"ckptmgr.step": str(manifest.step), **metadata}, full_names=len(components) > 1)

    def content() -> Iterator[memoryview]:
        yield from blocks(plan.header, [])
        for parts in _batches(directory, manifest, ranges):
            yield from blocks(b"", parts)

    part = output.with_name(f"{output.name}.part")
    if storage.is_occupied(output):
        raise CheckpointError(f"{output} exists already; give a new path")
    if not storage.is_dir(output.parent):
        raise CheckpointError(f"{output.parent} is not a directory; make it, or give another path")
    if storage.is_occupied(part):
        raise CheckpointError(f"{part} is being written, or was left by a command that was killed; then remove it")
    try:
        storage.write_new(part, plan.size_bytes, content())
        storage.rename(part, output)
        storage.sync_dir(output.parent)
    finally:
        if storage.is_occupied(part):
            storage.remove_file(part)
    return plan.size_bytes


def differences(first: tuple[Path, Manifest], second: tuple[Path, Manifest]) -> list[Difference]:
    """Return the tensors in which two steps differ, sorted by name.

    Raises CorruptCheckpointError: when a step's bytes are not what was written.
    """
    (first_path, one), (second_path, other) = first, second
    found = []
    shared = []
    for name in sorted(one.tensors.keys() | other.tensors.keys()):
        forms = [_form(manifest, name) for manifest in (one, other)]
        if forms[0] != forms[1]:
            found.append(Difference(name, f"{forms[0]} in the first, {forms[1]} in the second"))
        else:
            shared.append(name)
    counts = dict.fromkeys(shared, 0)
    largest = dict.fromkeys(shared, 0.0)
    ranges = [Range(spec, 0, spec.numel) for spec in _in_stored_order(one) if spec.name in counts]
    for parts in _batches(first_path, one, ranges):
        others = [(part, np.empty_like(values)) for part, values in parts]
        read_parts(second_path, other, others)
        for (part, values), (_, theirs) in zip(parts, others, strict=True):
            bits = [each.view(np.uint8).reshape(values.size, -1) for each in (values, theirs)]
            differ = (bits[0] != bits[1]).any(axis=1)
            if differ.any():
                name = part.spec.name
                gap = np.abs(values[differ].astype(np.float64) - theirs[differ].astype(np.float64)).max()
                counts[name] += int(differ.sum())
                largest[name] = float(np.maximum(largest[name], gap))
    found += [Difference(name, "", count, largest[name]) for name, count in counts.items() if count]
    return sorted(found, key=lambda each: each.name)


def _form(manifest: Manifest, name: str) -> str:
    placement = manifest.tensors.get(name)
    return "nothing" if placement is None else f"{placement.spec.dtype} {list(placement.spec.shape)}"


def _in_stored_order(manifest: Manifest) -> list[TensorSpec]:
    """Return the tensors in the files' order, so that one pass over the tensors is one pass over each file."""
    placed = sorted(
        manifest.tensors.values(),
        key=lambda each: (each.pieces[0].file, each.pieces[0].offset) if each.pieces else (-1, 0),
    )
    return [placement.spec for placement in placed]


def _batches(directory: Path, manifest: Manifest, ranges: Sequence[Range]) -> Iterator[Parts]:
    """Yield the verified elements of the ranges, in order, in batches of at most BATCH_BYTES."""
    batch: Parts = []
    room_bytes = BATCH_BYTES
    for part in ranges:
        item_bytes = DTYPES[part.spec.dtype].itemsize
        low = part.low
        while low < part.high:
            high = min(part.high, low + max(1, room_bytes // item_bytes))
            batch.append((Range(part.spec, low, high), np.empty(high - low, DTYPES[part.spec.dtype])))
            room_bytes -= (high - low) * item_bytes
            low = high
            if room_bytes <= 0:
                read_parts(directory, manifest, batch)
                yield batch
                batch, room_bytes = [], BATCH_BYTES
    read_parts(directory, manifest, batch)
    yield batch
