"""`vpred-data check PATH`: is this folder fit to train on?"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from data.errors import DataError
from data.source import Source, open_source

BAD_DATA = 2


def describe(source: Source) -> dict[str, int | float | str]:
    """Counts, sizes in pixels and lengths in words."""
    sides = source.sizes.min(1).tolist()
    texts = [source.sample(number).text for number in range(len(source))]
    words = [len(text.split()) for text in texts]
    return {
        "path": str(source.path),
        "images": len(source),
        "distinct_captions": len(set(texts)),
        "smallest_side_px": min(sides),
        "largest_short_side_px": max(sides),
        "mean_caption_words": round(sum(words) / len(words), 1),
        "longest_caption_words": max(words),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exit code 0 when the data is good, 2 with a list of what is not."""
    parser = argparse.ArgumentParser(prog="vpred-data", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser("check", help="read every row and decode every image")
    check.add_argument("path", type=Path)
    check.add_argument("--json", action="store_true")
    arguments = parser.parse_args(argv)
    try:
        facts = describe(open_source(arguments.path))
    except DataError as error:
        print(error, file=sys.stderr)
        sys.exit(BAD_DATA)
    if arguments.json:
        print(json.dumps(facts, indent=2))
    else:
        print("\n".join(f"{name.replace('_', ' '):24} {value}" for name, value in facts.items()))
    sys.exit(0)
