"""Export the histories of a run: curves as JSON for programs, or tables for the tools in which people compare runs."""

import argparse
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from monitoring.errors import MonitorError
from monitoring.export_formats import FILES, FORMATS
from monitoring.records import STEPS, VALIDATIONS, Rows, require_run
from monitoring.tables import Tables
from monitoring.thinned_curves import thinned_curves

BAD_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.export", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory")
    text = "curves prints JSON, at most 500 points a curve; the others write files"
    parser.add_argument("--to", required=True, choices=("curves", *FORMATS), help=text)
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder to make for the files")
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is in DIR")
    options = parser.parse_args(argv)
    try:
        return _export(options)
    except MonitorError as error:
        print(error, file=sys.stderr)
    except OSError as error:  # of the run's files or of the output
        print(f"{error.filename or options.output}: {error.strerror or error}", file=sys.stderr)
    return BAD_INPUT


def _export(options: argparse.Namespace) -> int:
    run = require_run(options.run)
    steps, held_out = Rows(run / STEPS), Rows(run / VALIDATIONS, rows_share_steps=True)
    if options.to == "curves":
        if options.output is not None or options.overwrite:
            raise MonitorError("--to curves: prints to standard output; remove --output and --overwrite")
        document = thinned_curves(steps, held_out)
        print(json.dumps(document, allow_nan=False), flush=True)
    else:
        if options.output is None:
            raise MonitorError(f"--to {options.to}: needs --output DIR, the folder to make")
        if next(iter(steps), None) is None:
            raise MonitorError(f"{steps.path}: found no step; export the run when it has trained")
        write_folder(options.output, options.overwrite, lambda at: FORMATS[options.to](Tables(steps, held_out), at))
        print(options.output)
    for rows in (steps, held_out):
        if rows.damaged:
            words = f"not a record; {rows.damaged} such line(s) are left out"
            print(f"{rows.path}:{rows.first_damaged}: {words}", file=sys.stderr)
    return 0


def write_folder(folder: Path, overwrite: bool, write: Callable[[Path], None]) -> None:
    """Have `write` fill a new folder beside `folder`, and rename that; nothing remains of one that raises.

    Raises MonitorError: when `folder` is not empty and `overwrite` is false, or it has files that are no export's.
    """
    folder = folder.absolute()
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise MonitorError(f"{folder}: found something else than a folder; give another --output")
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    if there and not overwrite:
        raise MonitorError(
            f"{folder}: has files already; add --overwrite to replace an export, or give another --output"
        )
    if there - FILES:
        raise MonitorError(f"{folder}: has {min(there - FILES)!r}, which is no export's; give another --output")
    folder.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{os.getpid()}.{secrets.token_hex(4)}"
    aside, before = (folder.with_name(f".{folder.name}.{mark}.{end}") for end in ("tmp", "old"))
    aside.mkdir()
    try:
        write(aside)
        if there:
            folder.rename(before)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if before.exists() and not folder.exists():
            before.rename(folder)
        shutil.rmtree(before, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
