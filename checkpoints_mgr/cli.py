"""vpred-ckpt inspects, verifies, compares, consolidates and prunes checkpoints, without MindSpore or MPI."""

import argparse
import json
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from numpy.typing import NDArray

from checkpoints_mgr.disk import storage
from checkpoints_mgr.disk.layout import MANIFEST, step_name, steps_in
from checkpoints_mgr.disk.manifest import Manifest
from checkpoints_mgr.disk.reading import lease, open_step, verify_files
from checkpoints_mgr.disk.streaming import consolidate, differences
from checkpoints_mgr.disk.verified import judge
from checkpoints_mgr.errors import CheckpointError, CorruptCheckpointError
from checkpoints_mgr.manager import CheckpointManager
from checkpoints_mgr.policy import Retention
from checkpoints_mgr.save.sweeping import file_server_s, given_up_here, leftovers, retire
from checkpoints_mgr.save.writing import discard
from checkpoints_mgr.state import JSON, State
from checkpoints_mgr.step_report import report_on, report_text

OK, CORRUPT, USAGE = 0, 1, 2
DIFFERENT = 1
SAFETENSORS = "safetensors"
GIVE_A_ROOT = "give a checkpoint root, such as RUN/checkpoints"
UNSOUND_REMEDY = "put its files back, or move it to quarantine/"


class Format(Protocol):
    """Writes a step's weights as a complete model in another layout. The caller passes its formats to `main`."""

    def __call__(self, step: Path, weights: str, base: Path | None, output: Path) -> str:
        """Write the model to `output` and return one line that reports what was written.

        weights: raw, ema, or the name of an average.
        base: path of the weights that the run began with, if they moved.
        Raises CheckpointError: when the model cannot be written.
        """
        ...


class Reader(Protocol):
    """Reads the tensors of files that are no step of this package. The caller passes its reader to `main`."""

    def __call__(self, path: Path) -> Mapping[str, NDArray[Any]]:
        """Return all tensors by name. Raises CheckpointError: when they cannot be read."""
        ...


NO_FORMATS: Mapping[str, Format] = MappingProxyType({})


def main(
    argv: Sequence[str] | None = None, formats: Mapping[str, Format] = NO_FORMATS, read: Reader | None = None
) -> int:
    """Run a command, and return the exit code: 0 ok, 1 something is corrupt or different.

    Raises CheckpointError: when the request cannot be met.
    formats: what `consolidate` can write besides safetensors.
    read: the reader of `convert`; without it the command does not exist.
    """
    arguments = _parser(formats, read).parse_args(argv)
    run: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return run(arguments)
    except CorruptCheckpointError as error:
        print(f"vpred-ckpt: {error}", file=sys.stderr)
        return CORRUPT
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CheckpointError(str(error)) from None


def _parser(formats: Mapping[str, Format], read: Reader | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vpred-ckpt", description="Inspect, verify, export, convert, compare and remove the checkpoints of a run."
    )
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    inspect = command("inspect", _inspect, "list steps and their contents; checks manifests and file sizes")
    verify = command("verify", _verify, "read every byte and compare it with its digest")
    for each in (inspect, verify):
        each.add_argument("path", type=Path, help="a checkpoint root, or one step_... directory")
    _add_consolidate(command("consolidate", _consolidate, "write full tensors of a step to one file"), formats)
    if read is not None:
        convert = command("convert", _convert, "write tensors of other software as a step, verified like any other")
        convert.set_defaults(read=read)
        convert.add_argument(
            "path",
            type=Path,
            help="a .ckpt or safetensors file, a folder of them, or a mindformers iteration_... folder",
        )
        convert.add_argument("output", type=Path, help="a checkpoint root, new or empty")
        convert.add_argument(
            "--component", default="model", help="component that the tensors become part of (default: model)"
        )
        convert.add_argument("--step", type=int, default=0, metavar="N", help="number of the step (default: 0)")
    diff = command("diff", _diff, "compare two steps, tensor by tensor, bit by bit")
    diff.add_argument("path", type=Path, help="a step_... directory, or a root for its newest step")
    diff.add_argument("other", type=Path, help="the same")
    prune = command(
        "prune",
        _prune,
        "remove old steps and the remains of killed saves; without --delete only list them; damaged steps stay",
    )
    prune.add_argument("path", type=Path, help="a checkpoint root")
    prune.add_argument(
        "--keep-last", type=int, default=2, metavar="N", help="keep the newest N sound steps (default: 2)"
    )
    prune.add_argument(
        "--keep-every", type=int, metavar="STEPS", help="keep the first checkpoint of each span of this many steps"
    )
    prune.add_argument("--keep-best", type=int, default=0, metavar="N", help="keep the best N by --metric (default: 0)")
    prune.add_argument(
        "--metric", default="validation_loss", help="a metric of the manifests (default: validation_loss)"
    )
    prune.add_argument("--highest", action="store_true", help="take the highest metric as the best, not the lowest")
    prune.add_argument("--delete", action="store_true", help="remove them instead of listing them")
    for each in (inspect, verify, diff, prune):
        each.add_argument("--json", action="store_true", help="print one JSON list")
    return parser


def _add_consolidate(parser: argparse.ArgumentParser, formats: Mapping[str, Format]) -> None:
    parser.set_defaults(formats=formats)
    parser.add_argument("path", type=Path, help="a step_... directory, or a root for its newest step")
    parser.add_argument("output", type=Path, help="new file to write, or new folder for diffusers")
    parser.add_argument(
        "--format",
        choices=(SAFETENSORS, *formats),
        default=SAFETENSORS,
        help="safetensors (default): the tensors of the step; others: a full model that other software loads",
    )
    parser.add_argument(
        "--component",
        action="append",
        help="component to write with --format safetensors; may be repeated (default: model)",
    )
    whole = parser.add_argument_group("full models")
    whole.add_argument("--weights", metavar="WHICH", help="raw, ema (default), or an average's name: power_0.07")
    whole.add_argument("--base", type=Path, help="path of the weights that the run began with, if they have moved")


def _inspect(arguments: argparse.Namespace) -> int:
    return _report_steps(arguments, open_step)


def _verify(arguments: argparse.Namespace) -> int:
    return _report_steps(arguments, _open_verified)


def _open_verified(path: Path) -> Manifest:
    with lease(path):
        manifest = open_step(path)
        verify_files(path, manifest)
    return manifest


def _report_steps(arguments: argparse.Namespace, opened: Callable[[Path], Manifest]) -> int:
    reports, unread = [], []
    for path in _step_paths(arguments.path):
        try:
            reports.append(report_on(path, opened))
        except (CheckpointError, OSError) as error:
            # A disk error, or a run that has removed the step meanwhile, says nothing about the other steps.
            unread.append(f"vpred-ckpt: {error}")
    _print(arguments, [asdict(report) for report in reports], [report_text(report) for report in reports])
    print("".join(f"{line}\n" for line in unread), end="", file=sys.stderr)
    if any(report.fault for report in reports):
        return CORRUPT
    return USAGE if unread else OK


def _consolidate(arguments: argparse.Namespace) -> int:
    path, output = _step_paths(arguments.path)[0], arguments.output.absolute()
    if arguments.format == SAFETENSORS:
        if arguments.weights is not None or arguments.base is not None:
            raise CheckpointError("--weights and --base: go with another --format; safetensors takes --component")
        with lease(path):
            size_bytes = consolidate(path, open_step(path), arguments.component or ["model"], output)
        print(f"{arguments.output}: {size_bytes} bytes of {path}")
        return OK
    if arguments.component is not None:
        raise CheckpointError(f"--component: goes with --format {SAFETENSORS}; give --weights instead")
    if storage.is_occupied(output):
        raise CheckpointError(f"{output} exists already; give a new path")
    with lease(path):
        print(arguments.formats[arguments.format](path, arguments.weights or "ema", arguments.base, output))
    return OK


def _convert(arguments: argparse.Namespace) -> int:
    root = arguments.output.absolute()
    if storage.is_occupied(root) and (not storage.is_dir(root) or storage.list_names(root)):
        raise CheckpointError(f"{root} exists already; give a new folder, or an empty one")
    tensors = arguments.read(arguments.path)
    state = State({f"{arguments.component}/{name}": tensor for name, tensor in tensors.items()}, progress={})
    saved = CheckpointManager(root).save(arguments.step, state)
    print(f"{arguments.output}: step {saved.step}, {len(tensors)} tensors of {arguments.path}")
    return OK


def _diff(arguments: argparse.Namespace) -> int:
    first, second = (_step_paths(path)[0] for path in (arguments.path, arguments.other))
    with lease(first), lease(second):
        found = differences((first, open_step(first)), (second, open_step(second)))
    lines = [f"{each.name}: {each.fault or f'{each.elements} elements, at most {each.largest:.3g}'}" for each in found]
    _print(arguments, [asdict(each) for each in found], lines or ["equal, bit for bit"])
    return DIFFERENT if found else OK


def _prune(arguments: argparse.Namespace) -> int:
    root = arguments.path.absolute()
    if not storage.is_dir(root):
        raise CheckpointError(f"{root} is not a directory; {GIVE_A_ROOT}")
    retention = Retention(
        last=arguments.keep_last,
        every_steps=arguments.keep_every,
        best=arguments.keep_best,
        metric=arguments.metric,
        mode="max" if arguments.highest else "min",
    )
    left = leftovers(root, file_server_s(root) if arguments.delete else time.time())
    if not left and not steps_in(storage.list_names(root)):
        raise CheckpointError(f"{root} holds no step_... directory; {GIVE_A_ROOT}")
    judged = judge(root)
    metrics = {name for each in judged.sound for name in each.metrics}
    if retention.best and judged.sound and retention.metric not in metrics:
        known = ", ".join(sorted(metrics)) or "none"
        raise CheckpointError(f"no step in {root} has the metric {retention.metric}; there are: {known}")
    steps = given_up_here(retention, judged.sound)
    names = [*map(step_name, steps), *left]
    if arguments.delete:
        discard(*retire(root, steps, secrets.token_hex(16)), *(root / name for name in left))
        names = [name for name in names if not storage.is_occupied(root / name)]  # a step that is being read stays
    verb = "removed" if arguments.delete else "would remove"
    _print(arguments, names, [f"{verb} {root / name}" for name in names] or ["nothing to remove"])
    for each in judged.unsound:
        advice = UNSOUND_REMEDY if each.proven else "see why it cannot be read"
        print(f"vpred-ckpt: {root / each.name} does not count and stays: {each.fault}; {advice}", file=sys.stderr)
    if any(each.proven for each in judged.unsound):
        return CORRUPT
    return USAGE if judged.unsound else OK


def _print(arguments: argparse.Namespace, document: list[JSON], lines: list[str]) -> None:
    print(json.dumps(document, indent=2) if arguments.json else "\n".join(lines))


def _step_paths(path: Path) -> list[Path]:
    """Return the step directories that a path stands for, newest first. Raises CheckpointError: when there is none."""
    path = path.absolute()
    if not storage.is_dir(path):
        raise CheckpointError(f"{path} is not a directory; give a checkpoint root or a step_... directory")
    names = storage.list_names(path)
    steps = [path / step_name(step) for step in steps_in(names)]
    if steps:
        return steps
    if MANIFEST in names or steps_in([path.name]):
        return [path]
    raise CheckpointError(f"{path} holds no step_... directory and no {MANIFEST}; {GIVE_A_ROOT}")
