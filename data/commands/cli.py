"""`vpred-data`: is a folder fit to train on, and is a cache whole?"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from data.commands import check as check_command
from data.commands import verify as verify_command


@dataclass(frozen=True)
class Command:
    """Describes a subcommand. `run` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


COMMANDS = {
    "check": Command("read every row and decode every image", check_command.add_arguments, check_command.run),
    "verify": Command("read every entry of a cache", verify_command.add_arguments, verify_command.run),
}


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run a command, and return the exit code: 0 when the data is good, 2 with a list of what is not.

    Raises DataError: when the data cannot be read.
    """
    parser = argparse.ArgumentParser(prog="vpred-data", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help))
    arguments = parser.parse_args(argv)
    return commands[arguments.command].run(arguments)
