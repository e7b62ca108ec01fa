"""Runs `vpred-data check PATH ...`, which reports whether folders are fit to train on."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from data.commands.check_page import render_page
from data.commands.examine import Findings, Tokenizer, examine
from data.errors import DataError
from data.sources.source import SHOWN_FAULTS, open_source

GOOD, BAD_DATA = 0, 2
MINDONE_FILTER_PX = 256  # image_filter_size of MindONE's recipes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vpred-data check`."""
    parser.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="folder of images with their captions")
    parser.add_argument(
        "--min-side-px",
        type=int,
        default=MINDONE_FILTER_PX,
        help="count the images that have a side below this (default: 256)",
    )
    parser.add_argument("--workers", type=int, help="number of processes that decode images (default: one per core)")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="also write an HTML page with lists and a contact sheet"
    )
    parser.add_argument("--json", action="store_true", help="print all findings as JSON, for several folders as a list")


def run(arguments: argparse.Namespace, make_tokenizer: Callable[[], Tokenizer] | None = None) -> int:
    """Check, print, and write each folder's index for later training runs. Returns 2 when a row is bad, otherwise 0.

    make_tokenizer: if the caller passes it, captions are also counted in tokens.
    Raises DataError: when an option is wrong, a folder cannot be read, or the page cannot be written.
    """
    if arguments.workers is not None and arguments.workers < 1:
        raise DataError(f"--workers: found {arguments.workers} (must be at least 1)")
    sources = [open_source(path, "report", workers=arguments.workers) for path in arguments.paths]
    checks = [(source, examine(source, arguments.min_side_px, make_tokenizer)) for source in sources]
    found = [findings for _, findings in checks]
    if arguments.json:
        documents = [findings.to_json() for findings in found]
        print(json.dumps(documents[0] if len(documents) == 1 else documents, indent=2, ensure_ascii=False))
    else:
        print("\n\n".join("\n".join(f"{name:24} {value}" for name, value in each.lines()) for each in found))
    for findings in found:
        print_bad(findings)
    if arguments.html:
        try:
            arguments.html.write_text(render_page(checks), encoding="utf-8")
        except OSError as error:
            raise DataError(f"--html {arguments.html}: cannot be written ({error.strerror})") from None
    return BAD_DATA if any(findings.bad for findings in found) else GOOD


def print_bad(findings: Findings) -> None:
    """Print the first SHOWN_FAULTS bad rows to stderr."""
    for origin, reason in findings.bad[:SHOWN_FAULTS]:
        print(f"{findings.path}: {origin}: {reason}", file=sys.stderr)
    if len(findings.bad) > SHOWN_FAULTS:
        more = len(findings.bad) - SHOWN_FAULTS
        print(f"{findings.path}: and {more} more bad rows; --json and --html list them", file=sys.stderr)
