"""Implements `vpred-launch export RUN`: has the monitoring package write a run's histories in other formats."""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.planning.trainer import Trainer
from launcher.processes.tied import own_program

_FORMATS = ("csv", "parquet", "tensorboard")


def add_command(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add `export` to the launcher's commands."""
    text = "write the histories of a run, also of one that runs, for the tools in which people compare runs"
    parser = commands.add_parser("export", help=text, description=text, allow_abbrev=False)
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="run directory")
    text = "the format; parquet and tensorboard need `pip install 'vpred[export]'`"
    parser.add_argument("--to", required=True, choices=_FORMATS, help=text)
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder to make for the files")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is in DIR")
    parser.set_defaults(command=_export)


def _export(options: argparse.Namespace, overrides: Sequence[str], trainer: Trainer) -> int:
    # Absolute paths cannot be taken for options.
    paths = [str(options.run_dir.absolute()), "--output", str(options.output.absolute())]
    argv = [*own_program(sys.executable, "monitoring.export"), *paths, "--to", options.to]
    return subprocess.run([*argv, *(["--overwrite"] if options.overwrite else [])], check=False).returncode
