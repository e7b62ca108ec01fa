"""Formats log lines so that those of several ranks can be merged: UTC time, rank, level, logger, message."""

import logging
import sys
import time


class RankHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Marks our handler on the root logger; a second `configure_logging` finds it by its type."""


class RankFormatter(logging.Formatter):
    """Formats a line as "2026-01-31T12:00:00.123Z rank 0 INFO vpred_train.trainer: message"."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, rank: int) -> None:
        super().__init__(f"%(asctime)s rank {rank} %(levelname)s %(name)s: %(message)s")
        self.converter = time.gmtime


def configure_logging(rank: int, level: int | str) -> None:
    """Send the root logger's lines of `level` and above, and Python's warnings, to stderr.

    A second call replaces the first; handlers attached by others stay.
    """
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, RankHandler)]:
        root.removeHandler(handler)
    ours = RankHandler(sys.stderr)
    ours.setFormatter(RankFormatter(rank))
    root.addHandler(ours)
    root.setLevel(level)
    logging.captureWarnings(True)
