"""`vpred-train`: checks a recipe, or trains as one rank of a run. Imports MindSpore only to train."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.contract.accelerators import ACCELERATORS
from launcher.contract.config import ConfigError, dump_yaml, load_document, schema_json
from launcher.contract.exit_codes import ExitCode
from launcher.contract.run_dir import RunDir
from vpred_train.collectives import TIMEOUT_S
from vpred_train.config import TrainConfig
from vpred_train.errors import USER_ERRORS
from vpred_train.recipe import check_world_size, load_recipe, open_data, open_pretrained


def build_parser() -> argparse.ArgumentParser:
    """The command line; `vpred-launch` writes the options of a rank."""
    parser = argparse.ArgumentParser(prog="vpred-train", description=__doc__)
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="change the recipe")
    parser.add_argument("--recipe", type=Path, help="YAML file of the training setup")
    parser.add_argument("--world-size", type=int, default=1, help="ranks to check the recipe for")
    parser.add_argument("--check", action="store_true", help="check recipe and data, then stop")
    parser.add_argument("--print-config", action="store_true", help="print the resolved recipe as YAML, then stop")
    parser.add_argument("--print-schema", action="store_true", help="print the recipe's JSON Schema, then stop")
    rank = parser.add_argument_group("one rank of a run (written by vpred-launch)")
    rank.add_argument("--run-dir", type=Path, help="run directory; without --recipe its train.yaml is used")
    rank.add_argument("--attempt", type=int, help="number of this start (default: a new one)")
    rank.add_argument("--accelerator", choices=sorted(ACCELERATORS), default="cpu")
    rank.add_argument("--metrics-address", default="127.0.0.1", help="where to serve metrics")
    rank.add_argument("--metrics-port-base", type=int, help="port of local rank 0 (default: no metrics)")
    rank.add_argument("--collective-timeout-s", type=float, default=TIMEOUT_S, help="end when peers do not answer")
    rank.add_argument("--rank-table", type=Path, help="HCCL rank table")
    rank.add_argument("--device-ids", help="physical device of each local rank: 0,1,2")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; never returns."""
    arguments = build_parser().parse_args(argv)
    try:
        sys.exit(run(arguments))
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        sys.exit(ExitCode.BAD_CONFIG)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Do what the arguments ask for; user errors are raised."""
    if arguments.print_schema:
        print(schema_json(TrainConfig))
        return ExitCode.OK
    config = resolve(arguments)
    if arguments.check or arguments.print_config:
        check_world_size(config, arguments.world_size)
        if arguments.check:
            open_data(config)
            open_pretrained(config)
        if arguments.print_config:
            print(dump_yaml(config), end="")
        return ExitCode.OK
    if arguments.run_dir is None:
        raise ConfigError("--run-dir is missing: give the directory to train in (or --check)")
    from vpred_train.worker import train  # brings in MindSpore's world, which checking does without

    return train(config, arguments)


def resolve(arguments: argparse.Namespace) -> TrainConfig:
    """The recipe named on the command line, else the one in the run directory."""
    if arguments.recipe is not None:
        return load_recipe(arguments.recipe, arguments.overrides)
    if arguments.run_dir is None:
        raise ConfigError("--recipe is missing: give a recipe file, such as vpred_train/recipes/tiny_emoji.yaml")
    return load_document(TrainConfig, RunDir(arguments.run_dir).train_yaml, arguments.overrides)
