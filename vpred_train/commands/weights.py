"""vpred-weights: SD 2.x weights of MindONE, Stability and diffusers. Only `probe` needs MindSpore."""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from data import DataConfig, DataError
from data import open_source as open_images
from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError
from launcher.contract.exit_codes import ExitCode
from vpred_train import runtime
from vpred_train.config.diffusion import DiffusionConfig
from vpred_train.foreign import finite_number
from vpred_train.weights.inspection import inspection, lines_of, lora_inspection, lora_lines_of
from vpred_train.weights.layouts.detection import LAYOUTS
from vpred_train.weights.layouts.read_write import read_weights, weights_of, write_weights
from vpred_train.weights.layouts.weight_source import open_source, weights_digest
from vpred_train.weights.lora.files import (
    is_lora,
    open_base,
    open_lora,
    other_base,
    read_factors,
    with_lora,
    write_lora,
)
from vpred_train.weights.record_lookup import add_options, record_for, record_with, told_by

EQUAL, DIFFERENT = 0, 1
UNCLEAR = 1
SHOWN = 10


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line, and end with sys.exit.

    Exit codes: 0 done, 1 `compare` found a difference or `probe` nothing clear, 2 cannot be done.
    """
    arguments = _parser().parse_args(argv)
    try:
        code = COMMANDS[arguments.command](arguments)
    except ConfigError as error:
        print(f"vpred-weights: {error}", file=sys.stderr)
        code = ExitCode.BAD_CONFIG
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vpred-weights", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "--weights", choices=("auto", "ema", "raw"), default="auto", help="auto: the moving average where there is one"
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="one JSON object")

    inspect = commands.add_parser("inspect", parents=[as_json], help="layout, tensors and record of a file or folder")
    inspect.add_argument("path", type=Path)
    inspect.add_argument("--headers-only", action="store_true", help="do not read the values to look for NaN and inf")
    compare = commands.add_parser("compare", parents=[which, as_json], help="the same weights, whatever the layout?")
    compare.add_argument("left", type=Path)
    compare.add_argument("right", type=Path)
    compare.add_argument(
        "--tolerance", type=finite_number, default=0.0, help="largest absolute difference that counts as equal"
    )
    convert = commands.add_parser("convert", parents=[which], help="write the same weights, or LoRA, in another layout")
    convert.add_argument("source", type=Path)
    convert.add_argument("target", type=Path, help="a new file, or for diffusers a new folder")
    convert.add_argument(
        "--to", choices=LAYOUTS, required=True, help="mindone .ckpt, stability safetensors or diffusers"
    )
    add_options(convert)
    merge = commands.add_parser("merge", parents=[which], help="add LoRA weights to full ones")
    merge.add_argument("base", type=Path, help="full SD 2.x weights in any layout")
    merge.add_argument("lora", type=Path, help="LoRA of ours, MindONE's or diffusers'")
    merge.add_argument("target", type=Path, help="a new file, or for diffusers a new folder")
    merge.add_argument("--to", choices=LAYOUTS, required=True, help="as of convert")
    merge.add_argument("--scale", type=finite_number, default=1.0, help="how strongly LoRA is added (default 1)")
    add_options(merge)
    probe = commands.add_parser("probe", parents=[which, as_json], help="what does the network really predict?")
    probe.add_argument("path", type=Path)
    probe.add_argument("--data", type=Path, required=True, help="folder of captioned images; the first few are used")
    probe.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    add_options(probe)
    return parser


def _inspect(arguments: argparse.Namespace) -> int:
    if is_lora(arguments.path):
        report = lora_inspection(open_lora(arguments.path))
        lines = lora_lines_of(report)
    else:
        report = inspection(open_source(arguments.path), not arguments.headers_only)
        lines = lines_of(report)
    print(json.dumps(report, indent=2) if arguments.json else "\n".join(lines))
    return ExitCode.OK


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.tolerance < 0:
        raise ConfigError(f"--tolerance: found {arguments.tolerance:g} (must be at least 0)")
    left, right = (read_weights(path, arguments.weights) for path in (arguments.left, arguments.right))
    if set(left) != set(right):
        raise ConfigError(
            f"{arguments.right}: {len(set(left) ^ set(right))} tensors are in one of the two only, such as "
            f"{min(set(left) ^ set(right))}; compare weights of one model"
        )
    differing: dict[str, str | float] = {}
    for name in left:
        one, other = left[name], right[name]
        if one.shape != other.shape:
            differing[name] = f"{one.shape} and {other.shape}"
        elif not np.allclose(one, other, rtol=0, atol=arguments.tolerance, equal_nan=True):
            largest = float(np.max(np.abs(one - other)))
            differing[name] = largest if math.isfinite(largest) else str(largest)  # JSON has no NaN
    if arguments.json:
        print(json.dumps({"equal": not differing, "tensors": len(left), "differing": differing}, indent=2))
    elif not differing:
        print(f"equal: {len(left)} tensors, none differs by more than {arguments.tolerance:g}")
    else:
        print(f"different: {len(differing)} of {len(left)} tensors")
        for name, difference in list(differing.items())[:SHOWN]:
            print(f"   {name}: {difference}")
    return DIFFERENT if differing else EQUAL


def _convert(arguments: argparse.Namespace) -> int:
    _require_new(arguments.target)
    if is_lora(arguments.source):
        return _convert_lora(arguments)
    source = open_source(arguments.source)
    record = record_for(source, arguments.weights, told_by(arguments))
    tensors = weights_of(source, arguments.weights)
    write_weights(arguments.target, tensors, arguments.to, record)
    print(f"{arguments.target}: {len(tensors)} tensors, {arguments.to} layout, from {source.layout} of {source.path}")
    return ExitCode.OK


def _convert_lora(arguments: argparse.Namespace) -> int:
    if told_by(arguments) or arguments.weights != "auto":
        raise ConfigError(f"{arguments.source}: holds LoRA weights; leave out --prediction-type and --weights")
    source = open_lora(arguments.source)
    factors = read_factors(source)
    write_lora(arguments.target, factors, arguments.to, source.record)
    print(f"{arguments.target}: LoRA, {arguments.to} layout, from {source.layout} of {source.path}")
    return ExitCode.OK


def _merge(arguments: argparse.Namespace) -> int:
    _require_new(arguments.target)
    lora = open_lora(arguments.lora)
    base = open_base(arguments.base, lora)
    record = record_with(base, arguments.weights, told_by(arguments), lora)
    tensors = with_lora(base, arguments.weights, lora, arguments.scale)
    if fault := other_base(lora, base.path, weights_digest(base.path)):
        print(f"vpred-weights: warning: {fault}", file=sys.stderr)
    write_weights(arguments.target, tensors, arguments.to, record)
    print(f"{arguments.target}: {len(tensors)} tensors, {arguments.to} layout, {lora.path} added to {base.path}")
    return ExitCode.OK


def _require_new(target: Path) -> None:
    if target.exists():
        raise ConfigError(f"{target}: exists already; give a new path")


def _probe(arguments: argparse.Namespace) -> int:
    """Probe what a network predicts, and print it.

    Returns 0 when the verdict is that of the record or the command line, or neither declares a type; 1 when nothing is
    clear.
    Raises ConfigError (exit code 2): when the verdict is another type, or the predictions are not finite.
    """
    source = open_source(arguments.path)
    told = told_by(arguments)
    record = record_for(source, arguments.weights, told)
    diffusion = record.diffusion if record else DiffusionConfig()
    tensors = weights_of(source, arguments.weights)
    try:
        samples = open_images(arguments.data)
    except DataError as error:
        raise ConfigError(str(error)) from None
    runtime.start_single(arguments.accelerator)
    from vpred_train.engine.inputs import OnlineInputs
    from vpred_train.models.networks import Networks
    from vpred_train.models.weights import set_weights
    from vpred_train.training.prediction_probe import NOT_FINITE, probe

    networks = Networks(source.model, 0)
    set_weights(networks, tensors)
    resolution = record.resolution if record else arguments.resolution
    data = DataConfig(path=arguments.data, resolution=resolution)
    found = probe(networks, diffusion, samples, OnlineInputs(source.model, data, 0, networks))
    if not found.finite:
        raise ConfigError(f"{arguments.path}: {NOT_FINITE} (residuals {found})")
    if arguments.json:
        print(json.dumps({"verdict": found.verdict, "residuals": found.residuals}, indent=2))
    else:
        print(f"{arguments.path}: predicts {found.verdict or 'neither v nor eps nor x0 clearly'} (residuals {found})")
    if record and found.verdict not in (None, record.diffusion.prediction_type):
        raise ConfigError(
            f"{arguments.path}: told to predict {record.diffusion.prediction_type}, but predicts {found.verdict}; "
            + (f"give --prediction-type {found.verdict}" if told else "its record is wrong")
        )
    return UNCLEAR if found.verdict is None else ExitCode.OK


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "inspect": _inspect,
    "compare": _compare,
    "convert": _convert,
    "merge": _merge,
    "probe": _probe,
}


if __name__ == "__main__":
    main()
