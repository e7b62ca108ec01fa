"""Reports what a step directory holds, for `vpred-ckpt inspect` and `verify`."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.errors import CorruptCheckpointError
from checkpoints_mgr.state import JSON


@dataclass(frozen=True)
class StepReport:
    """Reports what one step directory holds.

    fault: what is wrong with it; empty when nothing is.
    """

    path: str
    fault: str = ""
    step: int | None = None
    saved_utc: str = ""
    world_size: int = 0
    size_bytes: int = 0
    tensors: dict[str, int] = field(default_factory=dict)  # component -> number of tensors
    files: list[str] = field(default_factory=list)
    progress: dict[str, JSON] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


def report_on(path: Path, opened: Callable[[Path], Manifest]) -> StepReport:
    """Report on the step in `path`. `opened` opens and checks it.

    Raises CheckpointError or OSError: when it cannot be read.
    """
    try:
        manifest = opened(path)
    except CorruptCheckpointError as error:
        return StepReport(str(path), fault=str(error))
    counts = dict.fromkeys(manifest.components, 0)
    for placement in manifest.tensors.values():
        counts[placement.spec.component] += 1
    return StepReport(
        path=str(path),
        step=manifest.step,
        saved_utc=datetime.fromtimestamp(manifest.created_ns // 10**9, UTC).isoformat(),
        world_size=manifest.world_size,
        size_bytes=manifest.data_bytes,
        tensors=counts,
        files=[entry.name for entry in manifest.files],
        progress=dict(manifest.progress),
        metrics=dict(manifest.metrics),
    )


def report_text(report: StepReport) -> str:
    """Format a report for a reader."""
    if report.fault:
        return f"CORRUPT {report.path}: {report.fault}"
    tensors = ", ".join(f"{component} {count}" for component, count in report.tensors.items())
    progress = ", ".join(f"{key}={json.dumps(value)}" for key, value in {**report.progress, **report.metrics}.items())
    return (
        f"ok step {report.step}, saved {report.saved_utc} by {report.world_size} ranks, "
        f"{report.size_bytes} bytes in {len(report.files)} files\n"
        f"   tensors: {tensors}\n   progress: {progress}"
    )
