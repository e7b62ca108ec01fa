"""`vpred-train`: checks a recipe, or trains as one rank of a run. Imports MindSpore only to train."""

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from launcher.contract.accelerators import ACCELERATORS, Accelerator, accelerator_with
from launcher.contract.chips import installed_chips, refuse_first_generation
from launcher.contract.command_line import command_line
from launcher.contract.config import ConfigError, dump_yaml, load_document, schema_json
from launcher.contract.environment import environment
from launcher.contract.exit_codes import ExitCode
from launcher.contract.identity import read_identity
from launcher.contract.process import enable_stack_dumps
from launcher.contract.run_dir import RunDir
from vpred_train.config.train import TrainConfig
from vpred_train.distributed.collectives import TIMEOUT_S
from vpred_train.errors import USER_ERRORS
from vpred_train.estimates.memory import memory_plans, table
from vpred_train.foreign import finite_number
from vpred_train.latent_cache.requirements import cache_specs, check_cache
from vpred_train.prepare.data import open_data
from vpred_train.prepare.device import check_device
from vpred_train.prepare.mindone_keys import read_mindone
from vpred_train.prepare.mindone_recipe import TABLE, notes
from vpred_train.prepare.recipe import check_world_size, from_mindone, load_recipe, rank_counts
from vpred_train.prepare.recipe_changes import check_run_dir
from vpred_train.weights.layouts.read_write import require_finite
from vpred_train.weights.layouts.tensor_shapes import COMPONENTS
from vpred_train.weights.pretrained import open_pretrained


def build_parser() -> argparse.ArgumentParser:
    """Build the parser. `vpred-launch` writes the options of a rank."""
    parser = argparse.ArgumentParser(prog="vpred-train", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="changes to the recipe")
    parser.add_argument("--recipe", type=Path, help="YAML file of the training setup")
    parser.add_argument(
        "--world-size", type=int, default=1, help="number of ranks to check the recipe for (default: 1)"
    )
    parser.add_argument("--check", action="store_true", help="check recipe and data, then stop")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe as YAML, then stop")
    text = "with --print-config: accept pretrained weights that are absent here and lie on the machines that train"
    parser.add_argument("--without-weights", action="store_true", help=text)
    parser.add_argument("--print-schema", action="store_true", help="print the recipe's JSON Schema, then stop")
    parser.add_argument(
        "--print-rank-counts",
        action="store_true",
        help="print the numbers of ranks up to --world-size that divide the batch, then stop",
    )
    parser.add_argument("--memory-plan", action="store_true", help="print the bytes of each rank by kind, then stop")
    parser.add_argument(
        "--world-sizes",
        type=world_sizes,
        default=(8, 64, 512),
        metavar="N,N",
        help="numbers of ranks in the memory plan (default: 8,64,512)",
    )
    parser.add_argument("--json", action="store_true", help="print the memory plan as JSON")
    mindone = parser.add_argument_group("MindONE's train_text_to_image (instead of --recipe)")
    mindone.add_argument("--train_config", type=Path, metavar="FILE", help="MindONE's YAML; the flags are its keys")
    for key, rule in TABLE.items():
        if key == "profile":  # ours has the same name, and takes MindONE's False
            continue
        # Stored as pairs in one list, so that no key of MindONE's can collide with an option of ours.
        pair = partial(lambda name, text: (name, text), key)
        mindone.add_argument(
            f"--{key}", type=pair, action="append", dest="flags", default=[], metavar="VALUE", help=str(rule)
        )
    rank = parser.add_argument_group("one rank of a run (written by vpred-launch)")
    rank.add_argument(
        "--run-dir",
        type=Path,
        help="run directory; --check also checks it; its train.yaml is the recipe if --recipe is absent",
    )
    rank.add_argument("--attempt", type=int, help="number of this attempt (default: a new one)")
    rank.add_argument(
        "--accelerator", choices=sorted(ACCELERATORS), help="accelerator to train on, or to check for (default: cpu)"
    )
    rank.add_argument(
        "--engine", choices=("auto", "host", "device"), default="auto", help="where a step is computed (default: auto)"
    )
    rank.add_argument(
        "--operation",
        type=operation,
        action="append",
        default=[],
        metavar="KIND=NAME",
        help="a key of the cluster file's section operations; may be repeated",
    )
    rank.add_argument("--deterministic", action="store_true", help="kernels and collectives add up in a fixed order")
    rank.add_argument(
        "--profile",
        type=profiled_steps,
        default=0,
        metavar="N",
        help="record N steps with MindSpore's profiler, on accelerator ascend (default: 0)",
    )
    rank.add_argument(
        "--metrics-address", default="127.0.0.1", help="address at which metrics are served (default: 127.0.0.1)"
    )
    rank.add_argument("--metrics-port-base", type=int, help="metrics port of local rank 0 (default: no metrics)")
    rank.add_argument("--metrics-port-span", type=int, default=1, help="ports to try when one is taken (default: 1)")
    rank.add_argument(
        "--metrics-linger-s", type=finite_number, default=0.0, help="wait at the end for a scrape (default: 0)"
    )
    rank.add_argument("--metrics-certificate", type=Path, help="certificate to serve metrics over HTTPS with")
    rank.add_argument("--metrics-key", type=Path, help="key of --metrics-certificate")
    rank.add_argument("--metrics-client-ca", type=Path, help="certificates that sign those of clients")
    rank.add_argument("--metrics-users", type=Path, help="file of those who may scrape")
    rank.add_argument("--run-name", help="label `run` of the metrics (default: name of the run directory)")
    rank.add_argument(
        "--collective-timeout-s",
        type=finite_number,
        default=TIMEOUT_S,
        help="end the rank when its peers do not answer for this time",
    )
    rank.add_argument("--rank-table", type=Path, help="file of the HCCL rank table")
    rank.add_argument("--device-ids", help="physical device of every rank, such as 0,1,0,1")
    return parser


def world_sizes(text: str) -> tuple[int, ...]:
    """Parse numbers such as 8,64,512. Raises ValueError: for anything but whole numbers above 0."""
    sizes = tuple(int(part) for part in text.split(","))
    if min(sizes) < 1:
        raise ValueError(text)
    return sizes


def operation(text: str) -> tuple[str, str]:
    """Parse a word such as attention=composed. Raises ValueError: for a word without =."""
    kind, name = text.split("=")
    return kind, name


def profiled_steps(text: str) -> int:
    """Parse the number of steps to profile. MindONE's False is 0. Raises ArgumentTypeError: for other words."""
    if text.lower() == "false":
        return 0
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"found {text!r}; give the number of steps to record")
    return int(text)


def checked_accelerator(config: TrainConfig, arguments: argparse.Namespace) -> Accelerator:
    """Return the accelerator of the command line. Raises ConfigError: when it cannot train the recipe."""
    name, operations = arguments.accelerator or "cpu", dict(arguments.operation)
    accelerator = accelerator_with(name, arguments.engine, operations, arguments.deterministic)
    check_device(config, accelerator, arguments.profile)
    return accelerator


@command_line(*USER_ERRORS)
def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit code."""
    return run(build_parser().parse_args(argv))


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what the arguments request. User errors are raised."""
    if arguments.print_schema:
        print(schema_json(TrainConfig))
        return ExitCode.OK
    if arguments.json and not arguments.memory_plan:
        raise ConfigError("--json: it needs --memory-plan; give both or none")
    of_mindone = arguments.flags or arguments.train_config
    config = resolve_mindone(arguments) if of_mindone else resolve(arguments)
    if arguments.print_rank_counts:
        print(*rank_counts(config, arguments.world_size), sep="\n")
        return ExitCode.OK
    if arguments.check or arguments.print_config:
        check_world_size(config, arguments.world_size)
        if arguments.run_dir is not None:
            check_run_dir(RunDir(arguments.run_dir), config)
        if arguments.accelerator is not None or arguments.engine != "auto" or arguments.profile:
            accelerator = checked_accelerator(config, arguments)
            if accelerator.device_target == "Ascend":
                refuse_first_generation(installed_chips())
        if arguments.check:
            data = open_data(config)
            if config.pretrained is not None:
                parts = tuple(COMPONENTS[part] for part in config.pretrained.networks)
                require_finite(open_pretrained(config), parts)
            if config.data.cache is not None:
                recipe = arguments.recipe or RunDir(arguments.run_dir).train_yaml
                precision = config.precision.on(ACCELERATORS[arguments.accelerator or "cpu"])
                specs = cache_specs(config.model_copy(update={"precision": precision}))
                check_cache(config, specs, data.training, data.held_out, recipe)
        if arguments.print_config:
            print(dump_yaml(config), end="")
        return ExitCode.OK
    if arguments.memory_plan:
        plans = memory_plans(config, arguments.world_sizes, arguments.accelerator or "cpu", arguments.engine)
        print(json.dumps([plan.to_json() for plan in plans], indent=2) if arguments.json else table(plans))
        return ExitCode.OK
    if arguments.run_dir is None:
        raise ConfigError("--run-dir is missing: give the directory to train in (or --check)")
    accelerator = checked_accelerator(config, arguments)
    enable_stack_dumps()
    from vpred_train.training.worker import train

    return train(config, arguments, accelerator)


def resolve(arguments: argparse.Namespace) -> TrainConfig:
    """Return the recipe named on the command line, else the one in the run directory."""
    if arguments.recipe is not None:
        absent = arguments.memory_plan or arguments.without_weights
        return load_recipe(arguments.recipe, arguments.overrides, without_weights=absent)
    if arguments.run_dir is None:
        example = Path(__file__).parents[1] / "recipes" / "tiny_emoji.yaml"
        raise ConfigError(f"--recipe is missing: give a recipe file, such as {example}")
    return load_document(TrainConfig, RunDir(arguments.run_dir).train_yaml, arguments.overrides)


def resolve_mindone(arguments: argparse.Namespace) -> TrainConfig:
    """Translate MindONE's recipe for this number of ranks. Its output_path becomes the default run directory."""
    if arguments.recipe is not None:
        raise ConfigError("--recipe: does not go with MindONE's flags; give section.key=value, or leave it out")
    recipe = read_mindone(arguments.train_config, arguments.flags)
    identity = read_identity(environment())
    if identity.rank == 0:
        for note in notes(recipe):
            print(f"note: {note}", file=sys.stderr)
    if arguments.run_dir is None:
        arguments.run_dir = Path(recipe.output_path)
    world_size = arguments.world_size if identity.launcher == "none" else identity.world_size
    return from_mindone(recipe, arguments.train_config, arguments.overrides, world_size)
