"""Examines one rank's machine. `vpred-launch doctor` starts it with the options of a rank of a run."""

import argparse
import sys
from collections.abc import Sequence

from launcher.contract.exit_codes import ExitCode
from launcher.contract.process import enable_stack_dumps
from vpred_train.commands.train import build_parser, checked_accelerator, resolve
from vpred_train.doctor.station import Station, begin
from vpred_train.errors import USER_ERRORS


def main(argv: Sequence[str] | None = None) -> ExitCode:
    """Examine this machine and return the exit code, which says nothing about the findings."""
    arguments = parse(argv)
    try:
        station = start(arguments)
    except USER_ERRORS as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_CONFIG
    from vpred_train.doctor.examination import examine
    from vpred_train.doctor.table import AFTER_RESTART, CHECKS

    return examine(station, CHECKS if arguments.before is None else AFTER_RESTART)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the options of a rank, and `--before`."""
    parser = build_parser()
    parser.add_argument("--before", type=int, metavar="ATTEMPT", help="the start whose graphs and results are compared")
    return parser.parse_args(argv)


def start(arguments: argparse.Namespace) -> Station:
    """Start this rank as a run would. MindSpore may be imported afterwards."""
    enable_stack_dumps()
    config = resolve(arguments)
    return begin(config, arguments, checked_accelerator(config, arguments))
