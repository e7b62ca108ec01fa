"""`vpred-data`: is a folder fit to train on, and is a cache whole?"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from data.cache import Cache, damaged_entries
from data.csv_source import Source, read_csv_folder
from data.errors import DataError

BAD_DATA = 2


def describe(source: Source) -> dict[str, int | float | str]:
    """Counts, sizes in pixels and lengths in words."""
    sides = []
    for sample in source.samples:
        with Image.open(sample.image) as image:
            sides.append(min(image.size))
    words = [len(sample.text.split()) for sample in source.samples]
    return {
        "path": str(source.path),
        "images": len(source),
        "distinct_captions": len({sample.text for sample in source.samples}),
        "smallest_side_px": min(sides),
        "largest_short_side_px": max(sides),
        "mean_caption_words": round(sum(words) / len(words), 1),
        "longest_caption_words": max(words),
    }


@dataclass(frozen=True)
class Command:
    """`run` returns the exit code."""

    help: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vpred-data check`."""
    parser.add_argument("path", type=Path)
    parser.add_argument("--json", action="store_true")


def check(arguments: argparse.Namespace) -> int:
    """Say what a folder holds. Raises DataError with a list of what is bad."""
    show(describe(read_csv_folder(arguments.path)), arguments.json)
    return 0


def add_verify_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `vpred-data verify`."""
    parser.add_argument("cache", type=Path)
    parser.add_argument("--json", action="store_true")


def verify(arguments: argparse.Namespace) -> int:
    """Read every entry of a cache. Raises DataError with the shards that are damaged."""
    cache = Cache(arguments.cache)
    if not cache.shards:
        raise DataError(f"{arguments.cache}: holds no cache; give the --output of vpred-data encode")
    if faults := damaged_entries(cache):
        raise DataError("\n".join(faults))
    nbytes = sum(shard.path.stat().st_size for shard in cache.shards)
    show(
        {"path": str(cache.folder), "shards": len(cache.shards), "entries": len(cache), "bytes": nbytes}, arguments.json
    )
    return 0


def show(facts: Mapping[str, int | float | str], as_json: bool) -> None:
    """Print them, one on a line."""
    if as_json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(f"{name.replace('_', ' '):24} {value}" for name, value in facts.items()))


COMMANDS = {
    "check": Command("read every row and decode every image", add_check_arguments, check),
    "verify": Command("read every entry of a cache", add_verify_arguments, verify),
}


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> None:
    """Entry point; exit code 0 when the data is good, 2 with a list of what is not."""
    parser = argparse.ArgumentParser(prog="vpred-data", description=__doc__)
    subparsers = parser.add_subparsers(dest="command", required=True)
    for name, command in commands.items():
        command.add_arguments(subparsers.add_parser(name, help=command.help))
    arguments = parser.parse_args(argv)
    try:
        sys.exit(commands[arguments.command].run(arguments))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_DATA)
