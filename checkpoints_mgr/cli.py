"""vpred-ckpt inspect|verify PATH [--json]: look at checkpoints without MindSpore or MPI; never changes a file."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from checkpoints_mgr import storage
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.layout import MANIFEST, step_name, steps_in
from checkpoints_mgr.manifest import Manifest
from checkpoints_mgr.reading import open_step, verify_files
from checkpoints_mgr.state import JSON

OK, CORRUPT, USAGE = 0, 1, 2


@dataclass(frozen=True)
class StepReport:
    """What one step directory turned out to be. fault: empty when nothing is wrong."""

    path: str
    fault: str = ""
    step: int | None = None
    saved_utc: str = ""
    world_size: int = 0
    size_bytes: int = 0
    tensors: dict[str, int] = field(default_factory=dict)  # component -> number of tensors
    files: list[str] = field(default_factory=list)
    progress: dict[str, JSON] = field(default_factory=dict)


def main(argv: Sequence[str] | None = None) -> None:
    """Ends with sys.exit: 0 ok, 1 something is corrupt, 2 the request cannot be met."""
    arguments = _parser().parse_args(argv)
    try:
        reports = [_report(path, COMMANDS[arguments.command]) for path in _step_paths(arguments.path)]
    except (CheckpointError, OSError) as error:
        print(f"vpred-ckpt: {error}", file=sys.stderr)
        sys.exit(USAGE)
    if arguments.json:
        print(json.dumps([asdict(report) for report in reports], indent=2))
    else:
        for report in reports:
            print(_text(report))
    sys.exit(CORRUPT if any(report.fault for report in reports) else OK)


def _inspect(path: Path) -> Manifest:
    """Manifest and file sizes."""
    return open_step(path)


def _verify(path: Path) -> Manifest:
    """Every byte."""
    manifest = open_step(path)
    verify_files(path, manifest)
    return manifest


COMMANDS: dict[str, Callable[[Path], Manifest]] = {"inspect": _inspect, "verify": _verify}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpred-ckpt", description="Look at the checkpoints of a run.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("inspect", "list steps and what they hold; checks manifests and file sizes"),
        ("verify", "read every byte and compare it with its digest"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, help="a checkpoint root, or one step_... directory")
        command.add_argument("--json", action="store_true", help="one JSON list, an object for each step")
    return parser


def _step_paths(path: Path) -> list[Path]:
    """The step directories meant by a path, newest first. CheckpointError: there is none."""
    path = path.absolute()
    if not storage.is_dir(path):
        raise CheckpointError(f"{path} is not a directory; give a checkpoint root or a step_... directory")
    names = storage.list_names(path)
    steps = [path / step_name(step) for step in steps_in(names)]
    if steps:
        return steps
    if MANIFEST in names or steps_in([path.name]):
        return [path]
    raise CheckpointError(f"{path} holds no step_... directory and no {MANIFEST}")


def _report(path: Path, command: Callable[[Path], Manifest]) -> StepReport:
    try:
        manifest = command(path)
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
    )


def _text(report: StepReport) -> str:
    if report.fault:
        return f"CORRUPT {report.path}: {report.fault}"
    tensors = ", ".join(f"{component} {count}" for component, count in report.tensors.items())
    progress = ", ".join(f"{key}={json.dumps(value)}" for key, value in report.progress.items())
    return (
        f"ok step {report.step}, saved {report.saved_utc} by {report.world_size} ranks, "
        f"{report.size_bytes} bytes in {len(report.files)} files\n"
        f"   tensors: {tensors}\n   progress: {progress}"
    )
