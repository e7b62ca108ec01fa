"""What holds for all tests: what one leaves behind in the process is taken back, and ranks that wait make room."""

import logging
import os
from collections.abc import Iterator

import pytest

from monitoring.logs import RankHandler

# Jobs of several files share the cores: a rank that waits for its peers lets others work.
os.environ.setdefault("OMPI_MCA_mpi_yield_when_idle", "1")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    """A rank that is played in this process logs to a stderr that is closed when its test ends."""
    root = logging.getLogger()
    level = root.level
    yield
    for handler in [handler for handler in root.handlers if isinstance(handler, RankHandler)]:
        root.removeHandler(handler)
    root.setLevel(level)
    logging.captureWarnings(False)
