"""Runs `vpred-data verify`, which checks that every entry of a cache is what was written."""

import argparse
import json
from pathlib import Path

from data.cache.cache import Cache, damaged_entries
from data.errors import DataError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vpred-data verify`."""
    parser.add_argument("cache", type=Path, help="folder that vpred-data encode filled")
    parser.add_argument("--json", action="store_true")


def run(arguments: argparse.Namespace) -> int:
    """Read every entry and return 0. Raises DataError with the first fault of each damaged shard."""
    cache = Cache(arguments.cache)
    if not cache.shards:
        raise DataError(f"{arguments.cache}: holds no cache; give the --output of vpred-data encode")
    if faults := damaged_entries(cache):
        raise DataError("\n".join(faults))
    nbytes = sum(shard.path.stat().st_size for shard in cache.shards)
    facts = {"path": str(cache.folder), "shards": len(cache.shards), "entries": len(cache), "bytes": nbytes}
    print(json.dumps(facts, indent=2) if arguments.json else "\n".join(f"{k:24} {v}" for k, v in facts.items()))
    return 0
