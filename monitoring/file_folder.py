"""Writes the files that are made of this package's data into a folder, as a command."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path


def write_folder(argv: Sequence[str] | None, module: str, description: str, files: Mapping[str, str]) -> int:
    """Write `files`, by name, to the folder that the command line names. Return 2 when it cannot be written.

    module: what follows `python -m`
    """
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("folder", type=Path, help="folder for the files; it is made when it is missing")
    folder: Path = parser.parse_args(argv).folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        print(f"{folder}: cannot be written ({error.strerror}); name another folder", file=sys.stderr)
        return 2
    return 0
